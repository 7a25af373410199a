"""Bring weights from a host to an operated model, and from there into a fresh host.

To watch:

- Every key of the host is still there after the surgery: its state dict fits strictly, with the
  attention's own tensors beside it. ``strict=False`` would also hide a host of other names.
- ``attn_surgery.save`` and ``load`` repeat the surgery, check the host, and see through DDP and
  ``torch.compile``. A plain state dict needs the same surgery first: keep its plan beside it, and
  ``init`` in mind, for the keys do not tell ``paper`` from ``identity``.
- Wrappers put prefixes before the keys: ``module.`` (DDP, averages), ``_orig_mod.`` (compiled).

``python examples/checkpoints.py`` runs in seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

import attn_surgery
from attn_surgery.finetune import param_groups


def build() -> nn.Module:
    """Return the host, without its weights."""
    return torchvision.models.resnet18(num_classes=10).eval()


def train(model: nn.Module, images: Tensor) -> None:
    """Take one step, so that there is something to be kept."""
    groups = param_groups(model, 0.01, 10.0, attention_weight_decay=0.0)
    optimizer = torch.optim.AdamW(groups)
    F.cross_entropy(model.train()(images), torch.arange(len(images))).backward()
    optimizer.step()
    model.eval()


def attention_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the part of a model's state dict that surgery put there."""
    return {
        f"{path}.{key}": value
        for path, attention in attn_surgery.inserted(model).items()
        for key, value in attention.state_dict().items()
    }


def without_prefixes(state: dict[str, Any]) -> dict[str, Any]:
    """Take off what wrappers put before every key, outermost first."""
    for prefix in ("_orig_mod.", "module.", "_orig_mod."):
        consume_prefix_in_state_dict_if_present(state, prefix)
    return state


def main(folder: str | Path = ".") -> nn.Module:
    """Go each way once; the operated model."""
    images, host = torch.randn(4, 3, 64, 64), build()
    torch.save(host.state_dict(), host_path := Path(folder, "host.pth"))

    # A state dict of a host, loaded after the surgery: the function of the host, bit for bit.
    plan = attn_surgery.plan(build(), "cbam")
    model = attn_surgery.apply(build(), plan)
    weights = torch.load(host_path, weights_only=True)
    model.load_state_dict(attention_state(model) | weights)
    assert torch.equal(model(images), host(images))
    train(model, images)
    expected = model(images)

    # A checkpoint of the operated model, loaded into a fresh host: a file of attn_surgery ...
    attn_surgery.save(model, path := Path(folder, "attention.safetensors"), host="all")
    assert torch.equal(attn_surgery.load(build(), path)(images), expected)

    # ... or a plain state dict, with the plan of the surgery, of a model that was wrapped.
    wrapped: Any = torch.compile(nn.DataParallel(model))
    state = {"model": wrapped.state_dict(), "plan": plan.to_dict()}
    torch.save(state, path := Path(folder, "checkpoint.pth"))
    state = torch.load(path, weights_only=True)
    fresh = attn_surgery.apply(build(), attn_surgery.Plan.from_dict(state["plan"]))
    fresh.load_state_dict(without_prefixes(state["model"]))
    assert torch.equal(fresh(images), expected)
    return model


if __name__ == "__main__":
    main()
