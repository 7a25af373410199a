"""A recipe: what is trained, on what, how, and how often, as data.

Each class is a table of the TOML file, each attribute a key. `attn_surgery.finetune.read_recipe`
turns files into these and checks them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from attn_surgery.finetune.recipe.controls import (
    HOST,
    attention_of,
    is_control,
    stage_for,
    variant_of,
)
from attn_surgery.finetune.recipe.stages import Stage, without


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
            may be among them. ``scale``'s are those of the control ``scale``, too, which has
            ``shift = false`` unless they say otherwise.
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
        task: ``classification``, ``detection``, ``segmentation`` or ``restoration`` (of the images
            themselves from what ``domains`` make of them).
        root: The folder; ``folder`` has one folder for each split in it, with one for each class.
            Restoration takes all images of the split's folder, wherever in it; segmentation those
            in its folder ``images``, with masks of the same names in ``masks``: PNG files that hold
            the class of each pixel.
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
        held_out: Measure on so many of the training images, drawn once, and do not learn from them;
            0 to measure on ``val_split``. For choices, as of learning rates.
        train_transform: Keywords of ``timm.data.create_transform`` for training a classifier. For
            segmentation ``scale``: least and most of an image's area that is cut out and resized.
            For restoration ``hflip``, how often an image is mirrored, and ``scale``; without that,
            pixels are cut out as they are.
        val_transform: The same for measuring; for restoration ``scale``, for segmentation nothing.
        unlabelled: A folder of images without labels, for distillation; "" for none.
        repeats: How often an epoch has each image, and a measurement: as often it is cut, flipped
            and damaged otherwise, as chance would have it. For few large images.
        domains: Kinds of images that the stages' come in, without the model being told: ``clean``,
            ``inverted``, ``low_contrast``, ``noisy``, ``blurred``, ``grainy`` (noise of a strength
            that is drawn), ``recoloured`` (gain, gamma and the gain of each channel are drawn). One
            is drawn for each image that is learned; what is measured is every image in each, and
            the score is the mean over them. Pretraining learns from images as they are, but that of
            a restoration. Not for detection.
        views: How many versions of each image are drawn by the training transform, once and for
            all, and kept in the output folder with those that are measured; 0 for new ones in
            every epoch. For classification.
        prefix: Whether what a frozen host computes of each view before anything trains is computed
            once, too, and read from a file in the output folder. Needs ``views``; not with
            ``mixup``, ``cutmix`` and ``distill_weight``, which need the images. Numbers are the
            same but for rounding.
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
    held_out: int = 0
    repeats: int = 1
    train_transform: Mapping[str, Any] = field(default_factory=dict)
    val_transform: Mapping[str, Any] = field(default_factory=dict)
    unlabelled: str = ""
    domains: tuple[str, ...] = ()
    views: int = 0
    prefix: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def has_head(self) -> bool:
        """Whether the host has a head that is known, with one output for each class."""
        return self.task == "classification"

    def to_dict(self) -> dict[str, Any]:
        """Return what decides the images; keys that are younger than runs, only where they do."""
        told = _plain(dataclasses.asdict(self))
        return without(_YOUNGER, {k: v for k, v in told.items() if k not in _PLACES})


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
        first_seed: The first of them, if not 0: fresh ones, to confirm what others showed.
        control: Whether there are controls: what the attention has to beat.
        controls: Which: ``same``: the same stages without surgery; ``head``: its head alone trains;
            ``norms``: head, and weights and biases of the host's norms; ``scale``: a constant gate
            per channel, `attn_surgery.attention.Scale` without its shift, in the attention's place;
            ``full``: everything. Each with the stages' own steps, rates and seeds.
        budget: What controls have as much of as the attention: ``steps``, or ``seconds`` of
            training, those of the attention that took longest. Schedules follow the seconds then.
        output: Where everything is written.
        amp: ``no``, ``bf16`` or ``fp16``: mixed precision.
        sync_batchnorm: Whether batch norms, the host's and the attention's, go by the batches of
            all processes; else each process's go by its part.
        device: ``cpu``, or "" for the accelerator that there is.
        threads: CPU threads of a process; 0 for as many as torch takes.
        checkpoint_seconds: How often to save within an epoch.
        val_interval: How many epochs of a stage to measure after; its last is measured in any case.
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
    first_seed: int = 0
    control: bool = True
    controls: tuple[str, ...] = ("same",)
    budget: str = "steps"
    output: str = "runs"
    amp: str = "no"
    sync_batchnorm: bool = False
    device: str = ""
    threads: int = 0
    checkpoint_seconds: float = 60.0
    val_interval: int = 1
    log_every: int = 10
    report_seconds: float = 5.0
    note: str = ""

    @property
    def seed_numbers(self) -> range:
        """The seeds."""
        return range(self.first_seed, self.first_seed + self.seeds)

    @property
    def control_variants(self) -> tuple[str, ...]:
        """The controls, as variants are called."""
        return tuple(map(variant_of, self.controls)) if self.control else ()

    @property
    def variants(self) -> tuple[str, ...]:
        """What is compared: the controls, if there are any, and each attention."""
        return (*self.control_variants, *self.surgery.attention)

    @property
    def operated_variants(self) -> tuple[str, ...]:
        """Those that have attention."""
        return tuple(each for each in self.variants if attention_of(each))

    @property
    def training_order(self) -> tuple[str, ...]:
        """The variants as they train: controls last where they may take as long as attention."""
        if self.budget == "steps":
            return self.variants
        return (*self.surgery.attention, *self.control_variants)

    def stages_of(self, variant: str) -> list[tuple[str, Stage]]:
        """Return what a variant goes through, each stage with its place in the recipe."""
        name = "pretraining" if variant == HOST else "stages"
        return [
            (f"{name}.{i}", stage_for(variant, stage, has_head=self.data.has_head))
            for i, stage in enumerate(getattr(self, name))
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as plain data, fit for JSON."""
        return _plain(dataclasses.asdict(self))

    def identity(self, variant: str, seed: int) -> dict[str, Any]:
        """Return what of a recipe decides a run's weights and scores.

        A checkpoint is good for no other run. Threads, device and the number of processes, which
        change the last bits of them, are left free.

        Args:
            variant: An attention, a control, or ``host`` for the pretraining.
            seed: The seed.
        """
        data = self.to_dict()
        told = {key: data[key] for key in ("host", "amp")}
        told["data"] = self.data.to_dict()
        told["pretraining"] = self._told(HOST)
        # Files count by what they hold, whatever they are called: see `contents`.
        told["host"]["checkpoint"] = _GIVEN if self.host.checkpoint else ""
        told["data"]["unlabelled"] = _GIVEN if self.data.unlabelled and variant != HOST else ""
        if self.sync_batchnorm:  # not else: runs from before there was the key go on
            told["sync_batchnorm"] = True
        if variant != HOST:
            told["stages"] = self._told(variant)
        if attention := attention_of(variant):
            surgery = data["surgery"]
            own = surgery["options"].get(attention, {})
            told["surgery"] = {**surgery, "attention": attention, "options": own}
        if is_control(variant) and self.budget == "seconds":
            told["as_long_as"] = list(self.surgery.attention)
        return {**told, "variant": variant, "seed": seed}

    def _told(self, variant: str) -> list[Any]:
        return _plain([stage.to_dict() for _, stage in self.stages_of(variant)])


_PLACES = {"root", "workers", "download"}
"""Where data lies and who reads it changes no number."""

_YOUNGER = {"domains": [], "views": 0, "prefix": False, "held_out": 0, "repeats": 1}
"""Keys of data that were not there when runs began that shall go on, and what they meant then."""

_GIVEN = "given"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value
