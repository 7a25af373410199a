"""Uses that write a model down: export, ONNX, TorchScript, fx, compilers, features."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from compatibility.trial import Trial, same

TENSORRT = frozenset(
    "Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool "
    "BatchNormalization BlackmanWindow Cast CastLike Ceil Celu Clip Concat Constant "
    "ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DeformConv DepthToSpace DequantizeLinear "
    "Div Dropout Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor Gather GatherElements "
    "GatherND Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual "
    "GridSample GroupNormalization GRU HammingWindow HannWindow HardSigmoid HardSwish Hardmax "
    "Identity If InstanceNormalization IsInf IsNaN LayerNormalization LeakyRelu Less LessOrEqual "
    "Log LogSoftmax Loop LRN LSTM LpNormalization LpPool MatMul Max MaxPool Mean "
    "MeanVarianceNormalization Min Mish Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or Pad "
    "Pow PRelu QuantizeLinear RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range "
    "Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin "
    "ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence RMSNormalization "
    "RNN RoiAlign RotaryEmbedding Round STFT Scan Scatter ScatterElements ScatterND Selu Shape "
    "Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt "
    "Squeeze Sub Sum Tan Tanh TensorScatter ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze "
    "Upsample Where Xor".split()
)
"""What TensorRT 10.15 supports, by docs/operators.md of onnx/onnx-tensorrt."""
NEWEST_OPSET = 24


def export(trial: Trial) -> None:
    """`torch.export`, batch and size dynamic."""
    exported = torch.export.export(trial.model, (trial.x,), dynamic_shapes=trial.dynamic)
    for x in trial.several:
        trial.same(exported.module()(x), x)


def onnx(trial: Trial) -> None:
    """The dynamo exporter, run by onnxruntime at two batches and two sizes."""
    import onnxruntime  # pyright: ignore[reportMissingImports]

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(trial.onnx, options, ["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    for x in trial.several:
        found = session.run(None, {given.name: x.numpy()})[0]
        trial.same(torch.from_numpy(found), x, 1e-3)


def tensorrt(trial: Trial) -> None:
    """ONNX of operators and an opset that TensorRT lists; TensorRT itself is not run."""
    import onnx as package  # pyright: ignore[reportMissingImports]

    model = package.load_from_string(trial.onnx)
    opset = max(each.version for each in model.opset_import if each.domain in ("", "ai.onnx"))
    if opset > NEWEST_OPSET:
        raise ValueError(f"opset {opset} is newer than {NEWEST_OPSET}")
    foreign = {
        f"{n.domain}.{n.op_type}" for n in model.graph.node if n.domain not in ("", "ai.onnx")
    }
    unknown = {n.op_type for n in model.graph.node} - TENSORRT
    if unknown or foreign:
        raise ValueError(f"not among TensorRT's operators: {', '.join(sorted(unknown | foreign))}")


def compiled(trial: Trial) -> None:
    """`torch.compile(fullgraph=True)`, forward, and backward in float64; no code (aot_eager)."""
    torch.compiler.reset()
    exact = trial.in_float64()  # first: hosts that keep what they computed cannot be copied later
    run = torch.compile(trial.model, fullgraph=True, backend="aot_eager")
    trial.same(run(trial.x))
    run(trial.x).sum().backward()
    run = torch.compile(exact.model, fullgraph=True, backend="aot_eager")
    same(exact.gradient(run), exact.gradient(exact.model), 1e-9)


def traced(trial: Trial) -> None:
    """`torch.jit.trace`."""
    run: Any = torch.jit.trace(trial.model, trial.x, check_trace=False)
    trial.same(run(trial.x))


def scripted(trial: Trial) -> None:
    """`torch.jit.script`."""
    trial.same(torch.jit.script(trial.model)(trial.x))


def symbolic(trial: Trial) -> None:
    """`torch.fx.symbolic_trace`."""
    trial.same(fx.symbolic_trace(trial.model)(trial.x))


def features_torchvision(trial: Trial) -> None:
    """torchvision's `create_feature_extractor`, of the last node but one."""
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    _, names = get_graph_node_names(trial.model)
    found = create_feature_extractor(trial.model, [names[-1]])(trial.x)
    trial.same(found[names[-1]])


def features_timm(trial: Trial) -> None:
    """timm's `forward_intermediates`, its last map that of `forward_features`."""
    model: Any = trial.model
    if not hasattr(model, "forward_features"):
        raise TypeError("it is none of timm's")
    features = model.forward_features(trial.x)
    if not hasattr(model, "forward_intermediates"):
        raise TypeError("it has no forward_intermediates")
    last, maps = model.forward_intermediates(trial.x)
    if not maps:
        raise ValueError("no maps")
    same(last, features)


EXPORTING = {
    "onnx": onnx,
    "tensorrt": tensorrt,
    "export": export,
    "compile": compiled,
    "trace": traced,
    "script": scripted,
    "fx": symbolic,
    "features (torchvision)": features_torchvision,
    "features (timm)": features_timm,
}
