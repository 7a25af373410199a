"""Nothing disturbed: with an identity start, no number of the host changes, in either mode.

The hosts have weights as a trained net has: no norm, gain or layer scale is left at the zero
behind which no gate could have a gradient.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from versions import BROKEN, RESNEST_DROPS_PATHS, skip_younger_model

import attn_surgery

# Their cells concatenate, so that an addition receives a slice of a gradient. A gate hands on a
# dense one, which batch norm sums in another order: the last bits are those of the host with dense
# gradients.
SLICED_GRADIENTS = {"timm/nasnetalarge", "timm/pnasnet5large"}

SEEDS = (4, 5, 6)
VARIANTS = (("cbam", "skip"), ("se", "stack"))


@dataclass(frozen=True)
class Host:
    """A model to be built small, and what to call it with."""

    name: str
    size: int = 64
    options: dict[str, Any] = field(default_factory=dict)
    inputs: Callable[[int, bool], tuple[Any, ...]] | None = None

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        library, _, arch = self.name.partition("/")
        if library == "timm":
            skip_younger_model(arch)
            return timm.create_model(arch, **self.options)
        return torchvision.models.get_model(arch, **self.options)

    def arguments(self, training: bool) -> tuple[Any, ...]:
        torch.manual_seed(1)
        if self.inputs:
            return self.inputs(self.size, training)
        return (torch.randn(2, 3, self.size, self.size),)


def clip(size: int, training: bool) -> tuple[Any, ...]:
    return (torch.randn(2, 3, 4, size, size),)


def image_pair(size: int, training: bool) -> tuple[Any, ...]:
    return (torch.rand(1, 3, size, size) * 2 - 1, torch.rand(1, 3, size, size) * 2 - 1, 2)


def annotated_images(size: int, training: bool) -> tuple[Any, ...]:
    images = [torch.rand(3, size, size) for _ in range(2)]
    if not training:
        return (images,)
    mask = torch.zeros(1, size, size, dtype=torch.uint8)
    mask[:, 8:40, 8:40] = 1
    target = {
        "boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]),
        "labels": torch.tensor([1]),
        "masks": mask,
        "keypoints": torch.tensor([[[20.0, 20.0, 1.0]]]).expand(1, 17, 3),
    }
    return (images, [target, target])


def host(name: str, size: int = 64, *, inputs: Any = None, **options: Any) -> Host:
    return Host(name, size, options, inputs)


def detector(name: str, size: int = 64, **options: Any) -> Host:
    bare = {"weights": None, "weights_backbone": None, "num_classes": 5}
    return Host(name, size, {**bare, **options}, annotated_images)


def two_stage(name: str) -> Host:
    few = [f"rpn_{when}_nms_top_n_{mode}" for when in ("pre", "post") for mode in ("train", "test")]
    options: dict[str, Any] = {"min_size": 64, "max_size": 64, "box_score_thresh": 0.0}
    return detector(name, **options, **dict.fromkeys(few, 12))


def segmenter(name: str, **options: Any) -> Host:
    return host(name, 64, weights=None, weights_backbone=None, num_classes=5, **options)


DROPS: dict[str, Any] = {"drop_path_rate": 0.2, "drop_rate": 0.2}

TORCHVISION = [
    host("torchvision/resnet18"),
    host("torchvision/resnext50_32x4d"),
    host("torchvision/mobilenet_v2", dropout=0.2),
    host("torchvision/mobilenet_v3_small", dropout=0.2),
    host("torchvision/mnasnet0_5", dropout=0.2),
    host("torchvision/efficientnet_b0", stochastic_depth_prob=0.2),
    host("torchvision/efficientnet_v2_s", stochastic_depth_prob=0.2),
    host("torchvision/convnext_tiny", stochastic_depth_prob=0.2),
    host("torchvision/regnet_x_400mf"),
    host("torchvision/regnet_y_400mf"),
    host("torchvision/maxvit_t", 224),
    host("torchvision/quantized_resnet18", quantize=False),
    host("torchvision/quantized_mobilenet_v2", quantize=False),
    host("torchvision/quantized_mobilenet_v3_large", quantize=False),
    host("torchvision/r3d_18", 32, inputs=clip),
    host("torchvision/mc3_18", 32, inputs=clip),
    host("torchvision/r2plus1d_18", 32, inputs=clip),
    host("torchvision/raft_small", 128, inputs=image_pair),
    host("torchvision/raft_large", 128, inputs=image_pair),
    segmenter("torchvision/fcn_resnet50", aux_loss=True),
    segmenter("torchvision/deeplabv3_mobilenet_v3_large"),
    segmenter("torchvision/lraspp_mobilenet_v3_large"),
    two_stage("torchvision/fasterrcnn_mobilenet_v3_large_320_fpn"),
    two_stage("torchvision/maskrcnn_resnet50_fpn"),
    two_stage("torchvision/keypointrcnn_resnet50_fpn"),
    detector("torchvision/retinanet_resnet50_fpn", min_size=64, max_size=64),
    detector("torchvision/fcos_resnet50_fpn", min_size=64, max_size=64),
    detector("torchvision/ssdlite320_mobilenet_v3_large", 320),
]

TIMM = [
    host("timm/eca_botnext26ts_256", 256, **DROPS),
    host("timm/test_byobnet", **DROPS),
    host("timm/gernet_s", **DROPS),
    host("timm/convmixer_768_32", 28),
    host("timm/test_convnext", **DROPS),
    host("timm/cpubone_nano", 64),
    host("timm/csatv2", 128),
    host("timm/cs3darknet_s", **DROPS),
    host("timm/cspnext_tiny", **DROPS),
    host("timm/dla46_c"),
    host("timm/edgenext_xx_small", **DROPS),
    host("timm/efficientformerv2_s0", 224, **DROPS),
    host("timm/mobilenetv2_035", **DROPS),
    host("timm/tf_efficientnet_b0", **DROPS),
    host("timm/efficientvit_b0"),
    host("timm/fasternet_t0", **DROPS),
    host("timm/fastvit_t8", **DROPS),
    host("timm/focalnet_tiny_srf", **DROPS),
    host("timm/gcvit_xxtiny", 224, **DROPS),
    host("timm/ghostnet_050"),
    host("timm/ghostnetv3_050"),
    host("timm/hardcorenas_a", **DROPS),
    host("timm/hgnetv2_b0", **DROPS),
    host("timm/hrnet_w18_small"),
    host("timm/iformer_t", **DROPS),
    host("timm/inception_next_atto", **DROPS),
    host("timm/inception_resnet_v2", 96),
    host("timm/lcnetv2_small"),
    host("timm/lowformer_b0"),
    host("timm/test_coatnet", 160, **DROPS),
    host("timm/test_maxvit", 160, **DROPS),
    host("timm/caformer_s18", **DROPS),
    host("timm/mobilenetv3_small_050", **DROPS),
    host("timm/mobilenetv4_conv_small_035", **DROPS),
    host("timm/mobilevit_xxs", **DROPS),
    host("timm/mobilevitv2_050", **DROPS),
    host("timm/nextvit_small", **DROPS),
    host("timm/test_nfnet", **DROPS),
    host("timm/nf_regnet_b0", **DROPS),
    host("timm/regnetx_002", **DROPS),
    host("timm/regnety_002", **DROPS),
    host("timm/repghostnet_050"),
    host("timm/res2next50", **DROPS),
    host("timm/resnest14d", **(DROPS if RESNEST_DROPS_PATHS else {})),
    host("timm/test_resnet", **DROPS),
    host("timm/resnet10t", **DROPS),
    host("timm/resnetv2_18", **DROPS),
    host("timm/legacy_seresnet18"),
    host("timm/skresnet18", **DROPS),
    host("timm/starnet_s050", **DROPS),
    host("timm/swiftformer_xs", 224, **DROPS),
    host("timm/tiny_vit_5m_224", 224, **DROPS),
    host("timm/tresnet_m"),
    host("timm/visformer_tiny", 224, **DROPS),
    host("timm/eca_vovnet39b", **DROPS),
    host("timm/legacy_xception", 64),
    host("timm/xception41p", 64, **DROPS),
]

MORE_OF_TIMM = {
    64: """
        regnetz_b16 resnext26ts eca_resnext26ts seresnext26ts gcresnext26ts
        regnetz_c16 resnet32ts seresnet33ts gcresnet33ts gernet_m regnetz_d8 resnet50_clip_gap
        resnet50_mlp gernet_l convformer_s18 convmixer_1024_20_ks9_p14 test_convnext3
        convnext_zepto_rms convnextv2_atto cpubone_t0 cpubone_s0 cpubone_b0_bfrobust
        cs3darknet_focus_s darknet17 cspresnext50 sedarknet21 cs3sedarknet_xdw cspresnet50
        cspdarknet53 csatv2_21m cspnext_s cspnext_m cspnext_l dla46x_c dla34 dla60_res2next
        dla60x nf_regnet_b1 nf_resnet26 nf_ecaresnet26 nf_seresnet26 eca_nfnet_l0 ese_vovnet39b
        resnet14t resnet18 resnetblur18 resnet18d seresnet18 ecaresnext26t_32x4d ecaresnet26t
        seresnext26t_32x4d resnetaa34d resnext50_32x4d resnext50d_32x4d resnet50_gn resnetaa50
        resnet50c resnet50s seresnet50t seresnetaa50d edgenext_x_small mobilenetv2_050
        mnasnet_small tinynet_e semnasnet_050 mnasnet_050 tinynet_d tinynet_c tinynet_b mixnet_s
        tf_mixnet_s spnasnet_100 efficientnet_lite0 tf_efficientnet_lite0 mixnet_m fbnetc_100
        tinynet_a mixnet_l mixnet_xl gc_efficientnetv2_rw_t mixnet_xxl efficientvit_b1
        fasternet_t1 fastvit_t12 fastvit_s12 fastvit_mci0 mobilenetv3_small_075
        tf_mobilenetv3_small_075 fbnetv3_b fbnetv3_d fbnetv3_g focalnet_tiny_lrf ghostnet_100
        ghostnetv2_100 hardcorenas_b hgnetv2_b1 hgnet_tiny hgnet_small hrnet_w18_small_v2
        hrnet_w18 iformer_s iformer_m iformer_l inception_next_tiny lcnetv2_base lcnetv2_large
        legacy_seresnext26_32x4d lowformer_b1 mobilevit_xs regnety_004 regnetx_004
        regnetx_004_tv regnety_008_tv regnetz_005 regnetv_040 regnetz_040_h repghostnet_058
        res2net50_14w_8s res2net50d resnest26d resnest50d_1s4x24d resnetv2_18d resnetv2_34
        resnetv2_50x1_bit resnetv2_50t skresnet34 skresnet50d skresnext50_32x4d starnet_s100
        xception41
    """,
    224: """
        coatnet_pico_rw_224 coatnet_nano_cc_224 coatnext_nano_rw_224 coatnet_rmlp_nano_rw_224
        coatnet_0_224 coatnet_bn_0_rw_224 maxvit_tiny_rw_224 efficientformerv2_s1 gcvit_xtiny
        gcvit_tiny swiftformer_s tiny_vit_11m_224
    """,
    256: """
        halonet_h1 eca_halonext26ts lambda_resnet26t halonet26t botnet26t_256
        sehalonet33ts sebotnet33ts_256 lamhalobotnet50ts_256 halo2botnet50ts_256 halonet50ts
        botnet50ts_256 maxvit_pico_rw_256 maxvit_rmlp_pico_rw_256 maxvit_nano_rw_256
        maxxvit_rmlp_nano_rw_256 maxxvitv2_nano_rw_256
    """,
}

SLOW = [
    *(host(f"timm/{arch}", size) for size, names in MORE_OF_TIMM.items() for arch in names.split()),
    host("torchvision/wide_resnet50_2"),
    host("torchvision/efficientnet_b4"),
    host("torchvision/mnasnet1_3"),
    host("torchvision/quantized_resnet50", quantize=False),
    host("torchvision/quantized_resnext101_32x8d", quantize=False),
    segmenter("torchvision/fcn_resnet101"),
    segmenter("torchvision/deeplabv3_resnet50", aux_loss=True),
    two_stage("torchvision/fasterrcnn_resnet50_fpn"),
    two_stage("torchvision/fasterrcnn_resnet50_fpn_v2"),
    two_stage("torchvision/maskrcnn_resnet50_fpn_v2"),
    detector("torchvision/retinanet_resnet50_fpn_v2", min_size=64, max_size=64),
    host("timm/bat_resnext26ts", 256),
    host("timm/haloregnetz_b", 224),
    host("timm/mobilenetv5_base"),
    host("timm/nasnetalarge", 96),
    host("timm/pnasnet5large", 96),
    host("timm/vit_small_r26_s32_224", 224),
    host("timm/vitamin_small_224", 224),
]


OFTEN = [each for number, each in enumerate((*TORCHVISION, *TIMM)) if number % 4 == 0]
SELDOM = [each for each in (*TORCHVISION, *TIMM) if each not in OFTEN]


def cases(hosts: list[Host], *marks: Any) -> list[Any]:
    return [pytest.param(each, id=each.name, marks=marks) for each in hosts]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass
class Step:
    """Everything that one training step lets see."""

    outputs: list[Tensor]
    random_state: Tensor
    python_random_state: object
    buffers: dict[str, Tensor]
    gradients: dict[str, Tensor | None]


def tensors(outputs: object) -> list[Tensor]:
    return [each.detach() for each in tree_leaves(outputs) if isinstance(each, Tensor)]


def train_step(model: nn.Module, arguments: tuple[Any, ...], seed: int) -> Step:
    """Run one forward and backward pass from the model's buffers, which are put back."""
    model.train().zero_grad()
    kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
    torch.manual_seed(seed)
    random.seed(seed)
    outputs = model(*arguments)
    states = torch.get_rng_state(), random.getstate()
    scalar(outputs).backward()
    step = Step(
        outputs=tensors(outputs),
        random_state=states[0],
        python_random_state=states[1],
        buffers={name: buffer.clone() for name, buffer in model.named_buffers()},
        gradients={name: each.grad for name, each in model.named_parameters()},
    )
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(kept[name])
    return step


def scalar(outputs: object) -> Tensor:
    """Weigh the outputs differently, so that no norm makes the gradient vanish."""
    leaves = [each for each in tree_leaves(outputs) if isinstance(each, Tensor)]
    leaves = [each for each in leaves if each.requires_grad]
    weights = torch.Generator().manual_seed(2)
    return sum(
        ((each * torch.randn(each.shape, generator=weights)).sum() for each in leaves),
        start=torch.zeros(()),
    )


@torch.no_grad()
def evaluate(model: nn.Module, arguments: tuple[Any, ...]) -> list[Tensor]:
    return tensors(model.eval()(*arguments))


@torch.no_grad()
def train_a_little(model: nn.Module, arguments: tuple[Any, ...]) -> None:
    """Give the model what training gives: gains and scales that are not zero, statistics."""
    values = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.numel() and (parameter == parameter.flatten()[0]).all():
            parameter += torch.rand(parameter.shape, generator=values) * 0.4 + 0.1
    model.train()
    for _ in range(2):
        model(*arguments)


def dense_step(host: Host, arguments: tuple[Any, ...]) -> Step:
    """Run the training step of a host whose additions hand dense gradients to their branches."""
    model = host.build()
    train_a_little(model, arguments)
    for site in attn_surgery.plan(model, existing="stack").sites:
        end = model.get_submodule(site.block).get_submodule(site.after)
        end.register_forward_hook(hand_on_dense_gradients)
    return train_step(model, arguments, SEEDS[0])


def hand_on_dense_gradients(module: nn.Module, arguments: object, output: Tensor) -> None:
    output.register_hook(Tensor.contiguous)


def draws(step: Step) -> bool:
    """Tell whether the forward took random numbers."""
    torch.manual_seed(SEEDS[0])
    return not torch.equal(step.random_state, torch.get_rng_state())


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))


def differing(host: dict[str, Any], operated: dict[str, Any]) -> list[str]:
    """Name the tensors of the host that the operated host does not have, bit for bit."""
    return [name for name, value in host.items() if not equal(value, operated.get(name))]


def equal(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return torch.equal(a, b)


def without_gradient(model: nn.Module) -> set[str]:
    return {
        path
        for path, attention in attn_surgery.inserted(model).items()
        if not any(each.grad is not None and each.grad.any() for each in attention.parameters())
    }


@dataclass
class Makeup:
    """What a model is made of, object by object."""

    classes: dict[str, type]
    forwards: dict[str, Any]
    keys: list[str]
    tensors: dict[str, Tensor]


def makeup(model: nn.Module) -> Makeup:
    return Makeup(
        classes={path: type(module) for path, module in model.named_modules()},
        forwards={path: module.forward for path, module in model.named_modules()},
        keys=list(model.state_dict()),
        tensors={
            **dict(model.named_parameters(remove_duplicate=False)),
            **dict(model.named_buffers(remove_duplicate=False)),
        },
    )


def replaced(host: Makeup, operated: Makeup) -> list[str]:
    return [name for name, each in host.tensors.items() if operated.tensors.get(name) is not each]


def has_sites(model: nn.Module, attention: str, existing: str) -> bool:
    return bool(attn_surgery.plan(model, attention, existing=existing).sites)


@pytest.mark.sampled(3)
@pytest.mark.filterwarnings("ignore::UserWarning:torchvision", "ignore::UserWarning:timm")
@pytest.mark.parametrize("host", [*cases(OFTEN), *cases([*SELDOM, *SLOW], pytest.mark.slow)])
def test_nothing_is_disturbed(host: Host) -> None:
    model = host.build()
    train_arguments, arguments = host.arguments(training=True), host.arguments(training=False)
    train_a_little(model, train_arguments)
    step, outputs = train_step(model, train_arguments, SEEDS[0]), evaluate(model, arguments)
    assert step.outputs
    assert ("drop_rate" in host.options) <= draws(step)
    assert all(each.isfinite().all() for each in (*step.outputs, *outputs))
    before = makeup(model)

    variants = [each for each in VARIANTS if has_sites(model, *each)]
    assert variants
    for attention, existing in variants:
        attn_surgery.apply(model, attention, existing=existing)
        check_keys(model, before)
        if host.name in SLICED_GRADIENTS:
            step = dense_step(host, train_arguments)
        assert same(evaluate(model, arguments), outputs)
        check_step(model, train_arguments, step)

        attn_surgery.remove(model)
        assert makeup(model).classes == before.classes
        assert makeup(model).forwards == before.forwards
        assert makeup(model).keys == before.keys
        assert replaced(before, makeup(model)) == []
        assert same(evaluate(model, arguments), outputs)


def check_keys(model: nn.Module, before: Makeup) -> None:
    own = tuple(f"{path}." for path in attn_surgery.inserted(model))
    assert own
    after = makeup(model)
    assert [key for key in after.keys if not key.startswith(own)] == before.keys
    assert after.keys != before.keys
    assert replaced(before, after) == []


def check_step(model: nn.Module, arguments: tuple[Any, ...], host: Step) -> None:
    step = train_step(model, arguments, SEEDS[0])
    assert same(step.outputs, host.outputs)
    assert torch.equal(step.random_state, host.random_state)
    assert step.python_random_state == host.python_random_state
    assert differing(host.buffers, step.buffers) == []
    assert differing(host.gradients, step.gradients) == []
    dead = without_gradient(model)
    for seed in SEEDS[1:] if dead else ():  # a step in which their block is not dropped
        train_step(model, arguments, seed)
        dead &= without_gradient(model)
    assert dead == set()


@pytest.mark.sampled(4)
@pytest.mark.parametrize("attention", sorted({*attn_surgery.available()} - BROKEN))
@pytest.mark.parametrize("init", ["identity", "paper"])
@pytest.mark.parametrize("name", ["timm/test_resnet", "torchvision/efficientnet_b0"])
def test_no_verb_draws_from_the_global_random_streams(name: str, attention: str, init: str) -> None:
    model = host(name).build()
    torch.manual_seed(7)
    random.seed(7)
    np.random.seed(7)
    before = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())
    attn_surgery.plan(model, attention, existing="stack")
    attn_surgery.apply(model, attention, existing="stack", init=init)
    attn_surgery.inserted(model)
    attn_surgery.remove(model)
    after = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_the_start_of_an_attention_follows_the_seed() -> None:
    """Not disturbing the stream does not mean ignoring it: a seed still decides the start."""
    starts = []
    for seed in (0, 0, 1):
        model = host("timm/test_resnet").build()
        torch.manual_seed(seed)
        attn_surgery.apply(model, "cbam", init="paper")
        attentions = attn_surgery.inserted(model).values()
        starts.append(torch.cat([p.flatten() for each in attentions for p in each.parameters()]))
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


def test_two_attentions_of_one_model_do_not_start_alike() -> None:
    model = attn_surgery.apply(host("timm/convmixer_768_32").build(), "se", init="paper")
    first, second = list(attn_surgery.inserted(model).values())[:2]
    (weight, *_), (other, *_) = first.parameters(), second.parameters()
    assert weight.shape == other.shape
    assert not torch.equal(weight, other)
