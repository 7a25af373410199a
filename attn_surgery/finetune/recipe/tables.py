"""A recipe: what is trained, on what, how, and how often, as data.

Each class is a table of the TOML file, each attribute a key. `attn_surgery.finetune.read_recipe`
turns files into these and checks them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

CONTROL = "control"
HOST = "host"


@dataclass(frozen=True)
class Host:
    """``[host]``: the network that is operated on.

    Attributes:
        model: ``resnet50``, ``timm/NAME``, ``torchvision/NAME`` or ``package.module:callable``.
        pretrained: Whether to load the library's weights.
        checkpoint: A file with a state dict, read before the head is fitted; "" for none.
        options: Keywords for what builds the model.
    """

    model: str
    pretrained: bool = False
    checkpoint: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def has_weights(self) -> bool:
        """Whether it was trained before."""
        return self.pretrained or bool(self.checkpoint)


@dataclass(frozen=True)
class Surgery:
    """``[surgery]``: what is put where, as `attn_surgery.apply` takes it.

    Attributes:
        attention: One variant for each; a name, ``layer4.*=cbam,*=se``, or the file of a plan.
        where: Patterns over block paths; none for every block.
        position: ``standard``, ``pre``, ``post``, ``identity``, ``mid`` or ``output``.
        existing: ``skip``, ``stack`` or ``replace``.
        init: ``identity`` or ``paper``.
        options: For each attention, by name, its options; ``where``, ``position`` and ``existing``
            may be among them.
    """

    attention: tuple[str, ...] = ("cbam",)
    where: tuple[str, ...] = ()
    position: str = "standard"
    existing: str = "skip"
    init: str = "identity"
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Data:
    """``[data]``: images and what is to be learned from them.

    Attributes:
        name: ``digits`` (scikit-learn's, 1,797 images), ``folder``, ``torchvision/CLASS`` or
            ``timm/NAME`` (what ``timm.data.create_dataset`` knows, as ``timm/hfds/cifar10``).
        task: ``classification``, ``detection`` or ``segmentation``.
        root: The folder; ``folder`` has one folder for each split in it, with one for each class.
        train_split: The split that is learned.
        val_split: The split that is measured.
        download: Whether the library may fetch what is missing.
        classes: How many classes; 0 for as many as the data set says.
        image_size: Side of the images in pixels; 0 for what the model's library says, else 224.
        channels: 1 or 3.
        batch_size: Images in a batch, of all processes together.
        workers: Processes that read images, for each process that trains.
        limit: Learn from so many images only, drawn once; 0 for all.
        val_limit: Measure on so many images only; 0 for all.
        train_transform: Keywords of ``timm.data.create_transform`` for training.
        val_transform: The same for measuring.
        unlabelled: A folder of images without labels, for distillation; "" for none.
        options: More keywords for the data set's class; ``{root}`` and ``{split}`` are filled in.
    """

    name: str = "digits"
    task: str = "classification"
    root: str = "data"
    train_split: str = "train"
    val_split: str = "val"
    download: bool = False
    classes: int = 0
    image_size: int = 0
    channels: int = 3
    batch_size: int = 64
    workers: int = 0
    limit: int = 0
    val_limit: int = 0
    train_transform: Mapping[str, Any] = field(default_factory=dict)
    val_transform: Mapping[str, Any] = field(default_factory=dict)
    unlabelled: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """``[[stages]]`` or ``[[pretraining]]``: some epochs of training.

    Attributes:
        trains: ``all``; ``attention``; or patterns over the names of the host's parameters, and
            the word ``head``, besides which the attention trains. The control, which has no
            attention, trains everything in an ``attention`` stage: the same number of steps, at
            ``lr``, which therefore has to be one that is good for the host. What the host itself
            does not train (``requires_grad`` is false) stays as it is.
        freezes: Patterns over the names of the host's parameters that do not train all the same;
            new attention within is not meant, unless ``freezes_attention``.
        freezes_attention: Whether ``freezes`` means new attention, too.
        epochs: How many times the training images are seen.
        optimizer: One that ``timm.optim`` knows.
        lr: Learning rate of the host.
        attention_lr_scale: How many times the host's learning rate the attention's is.
        weight_decay: Of weights; biases, norms and the scalars of gates have none.
        optimizer_options: More keywords for the optimizer.
        schedule: ``cosine``, ``poly``, ``tanh``, ``step``, ``multistep`` of ``timm.scheduler``, or
            ``constant``.
        schedule_options: More keywords of ``timm.scheduler.create_scheduler_v2``.
        warmup_epochs: Epochs in which the learning rates rise from 0; part of ``epochs``.
        norm_stats: The host's running statistics: ``live``, ``frozen``, or ``auto``: live where
            they are those of 16 images or more, of a process's part of a batch (of several
            processes, the first one's are kept) or, with ``sync_batchnorm``, of all of it. Where
            nothing of a norm trains they are frozen. Those of the attention are live.
        label_smoothing: From 0 to 1.
        mixup: Alpha of mixup; 0 for none.
        cutmix: Alpha of CutMix; 0 for none.
        ema: Decay of the moving average of the weights, which is then what is measured and kept;
            0 for none.
        clip_grad: Largest norm of the gradient; 0 for any.
        accumulate: Batches for one step of the optimizer.
        distill_weight: Of the loss against the untouched host's output; 0 for none.
        distill_temperature: What logits are divided by there.
    """

    trains: tuple[str, ...] = ("all",)
    freezes: tuple[str, ...] = ()
    freezes_attention: bool = False
    epochs: int = 1
    optimizer: str = "adamw"
    lr: float = 1e-3
    attention_lr_scale: float = 10.0
    weight_decay: float = 0.01
    optimizer_options: Mapping[str, Any] = field(default_factory=dict)
    schedule: str = "cosine"
    schedule_options: Mapping[str, Any] = field(default_factory=dict)
    warmup_epochs: float = 0.0
    norm_stats: str = "auto"
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    ema: float = 0.0
    clip_grad: float = 0.0
    accumulate: int = 1
    distill_weight: float = 0.0
    distill_temperature: float = 1.0

    @property
    def is_for_attention_alone(self) -> bool:
        """Whether nothing of the host trains."""
        return set(self.trains) == {"attention"}


@dataclass(frozen=True)
class Recipe:
    """The whole file.

    Attributes:
        host: The network.
        data: The images.
        stages: What is done after the surgery.
        surgery: What is inserted.
        pretraining: What is done before it: once for each seed, for all variants alike.
        seeds: How often everything is repeated, with seeds 0, 1, 2, ...
        control: Whether the same is done without surgery.
        output: Where everything is written.
        amp: ``no``, ``bf16`` or ``fp16``: mixed precision.
        sync_batchnorm: Whether batch norms, the host's and the attention's, go by the batches of
            all processes; else each process's go by its part.
        device: ``cpu``, or "" for the accelerator that there is.
        threads: CPU threads of a process; 0 for as many as torch takes.
        checkpoint_seconds: How often to save within an epoch.
        log_every: How many steps the training loss is averaged over in the logs.
        report_seconds: How long to measure latencies at the end; 0 for not at all.
        note: What a reader of the result has to know.
    """

    host: Host
    data: Data
    stages: tuple[Stage, ...]
    surgery: Surgery = Surgery()
    pretraining: tuple[Stage, ...] = ()
    seeds: int = 3
    control: bool = True
    output: str = "runs"
    amp: str = "no"
    sync_batchnorm: bool = False
    device: str = ""
    threads: int = 0
    checkpoint_seconds: float = 60.0
    log_every: int = 10
    report_seconds: float = 5.0
    note: str = ""

    @property
    def variants(self) -> tuple[str, ...]:
        """What is compared: the control, if there is one, and each attention."""
        return (*([CONTROL] if self.control else []), *self.surgery.attention)

    def stages_of(self, variant: str) -> list[tuple[str, Stage]]:
        """Return what a variant goes through, each stage with its place in the recipe."""
        name = "pretraining" if variant == HOST else "stages"
        return [(f"{name}.{i}", stage) for i, stage in enumerate(getattr(self, name))]

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as plain data, fit for JSON."""
        return _plain(dataclasses.asdict(self))

    def identity(self, variant: str, seed: int) -> dict[str, Any]:
        """Return what of a recipe decides a run's weights and scores.

        A checkpoint is good for no other run. Threads, device and the number of processes, which
        change the last bits of them, are left free.

        Args:
            variant: An attention, ``control``, or ``host`` for the pretraining.
            seed: The seed.
        """
        data = self.to_dict()
        told = {key: data[key] for key in ("host", "data", "amp", "pretraining")}
        told["data"] = {key: value for key, value in told["data"].items() if key not in _PLACES}
        # Files count by what they hold, whatever they are called: see `contents`.
        told["host"]["checkpoint"] = _GIVEN if self.host.checkpoint else ""
        told["data"]["unlabelled"] = _GIVEN if self.data.unlabelled and variant != HOST else ""
        if self.sync_batchnorm:  # not else: runs from before there was the key go on
            told["sync_batchnorm"] = True
        if variant != HOST:
            told["stages"] = data["stages"]
        if variant not in {CONTROL, HOST}:
            surgery = data["surgery"]
            own = surgery["options"].get(variant, {})
            told["surgery"] = {**surgery, "attention": variant, "options": own}
        return {**told, "variant": variant, "seed": seed}


_PLACES = {"root", "workers", "download"}
"""Where data lies and who reads it changes no number."""

_GIVEN = "given"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value
