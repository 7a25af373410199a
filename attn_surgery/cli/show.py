"""``attn-surgery show``."""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Sequence
from pathlib import Path

from attn_surgery.errors import SurgeryError, one_line
from attn_surgery.host import check_folder, load_model
from attn_surgery.reporting import accelerator, checked_device
from attn_surgery.showing import (
    IMAGENET,
    Gallery,
    check_ending,
    check_method,
    show,
)
from attn_surgery.surgery import load


def run(arguments: argparse.Namespace) -> int:
    """Show what the attention of a file does to images."""
    for path in arguments.output:
        check_ending(path)
        check_folder(path)
    gallery = _shown(arguments)
    for path in arguments.output:
        gallery.save(path)
    if arguments.json:
        print(json.dumps(gallery.to_dict(), indent=2))
    else:
        print(f"{gallery}\nwritten: {', '.join(map(str, arguments.output))}")
    return 0


def _shown(arguments: argparse.Namespace) -> Gallery:
    method = None if arguments.method == "none" else arguments.method
    check_method(method)
    classes = _classes(arguments.classes)
    name = arguments.model
    host = load_model(
        name, pretrained=arguments.pretrained, checkpoint=arguments.checkpoint, device=None
    )
    model = load(copy.deepcopy(host), arguments.weights)
    target = arguments.target
    return show(
        model.to(checked_device(arguments.device or accelerator() or "cpu")),
        arguments.images,
        host=host,
        classes=classes,
        target=int(target) if target and target.isdecimal() else target,
        layer=arguments.layer,
        method=method,
        name=name,
    )


def _classes(given: str | None) -> str | Sequence[str] | None:
    if given is None or given == IMAGENET:
        return given
    try:
        return Path(given).read_text().splitlines()
    except (OSError, UnicodeError) as error:
        raise SurgeryError(f"cannot read the classes: {one_line(error)}") from error
