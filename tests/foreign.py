"""Every vision and audio model of transformers, as a whole and without weights.

They are those of its tables for tasks of images, videos and sound, and their bodies, each built
from the defaults of its configuration, on the meta device. Nothing is downloaded.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from inspect import signature
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
import transformers
from torch import nn
from transformers.models.auto import feature_extraction_auto, modeling_auto

from attn_surgery.host.inputs import Input

TASKS = """
    IMAGE IMAGE_CLASSIFICATION ZERO_SHOT_IMAGE_CLASSIFICATION MASKED_IMAGE_MODELING
    CAUSAL_IMAGE_MODELING IMAGE_SEGMENTATION SEMANTIC_SEGMENTATION INSTANCE_SEGMENTATION
    UNIVERSAL_SEGMENTATION MASK_GENERATION OBJECT_DETECTION ZERO_SHOT_OBJECT_DETECTION
    KEYPOINT_DETECTION KEYPOINT_MATCHING POSE_ESTIMATION DEPTH_ESTIMATION NORMAL_ESTIMATION
    POINTMAP_ESTIMATION IMAGE_MATTING IMAGE_TO_IMAGE TEXT_RECOGNITION TABLE_RECOGNITION
    VIDEO_CLASSIFICATION BACKBONE
    AUDIO_CLASSIFICATION AUDIO_FRAME_CLASSIFICATION AUDIO_XVECTOR AUDIO_TOKENIZATION CTC RNNT TDT
    SPEECH_SEQ_2_SEQ TEXT_TO_SPECTROGRAM TEXT_TO_WAVEFORM
""".split()
IN_NO_TABLE = ("SpeechT5HifiGan", "FastSpeech2ConformerHifiGan")
"""Vocoders: transformers' tables know no task for them."""

VERSION = transformers.__version__
RECORDED_WITH = "5.24.0"

OPTIONS: dict[str, dict[str, Any]] = {
    "BeitForSemanticSegmentation": {"out_indices": [3, 5, 7, 11]},
    "PerceiverForImageClassificationFourier": {"num_cross_attention_heads": 1},
    "PerceiverForImageClassificationConvProcessing": {"num_cross_attention_heads": 1},
    "Wav2Vec2BertForCTC": {"vocab_size": 32},
    "Wav2Vec2ConformerForCTC": {"vocab_size": 32},
    "ConvNextBackbone": {"hidden_sizes": [96, 192, 384, 768], "depths": [3, 3, 9, 3]},
    "ConvNextV2Backbone": {"hidden_sizes": [96, 192, 384, 768], "depths": [3, 3, 9, 3]},
    "FocalNetBackbone": {"hidden_sizes": [192, 384, 768, 768], "depths": [2, 2, 6, 2]},
    "VitMatteForImageMatting": {"fusion_hidden_sizes": [256, 128, 64, 32]},
    "TimmBackbone": {"backbone": "resnet18", "use_pretrained_backbone": False},
}
"""What a configuration must be told for its model to be built."""

_GIVEN = "needs a configuration of a part, which has no default"
_FAULTY = "the defaults of its configuration are not those of its model"
UNBUILT = {
    "DinatBackbone": "needs natten",
    "DinatForImageClassification": "needs natten",
    "DinatModel": "needs natten",
    "HiggsAudioV2TokenizerModel": "needs torchaudio",
    "MoonshineStreamingForConditionalGeneration": _FAULTY,
    "MoonshineStreamingModel": _FAULTY,
    "PPOCRV5ServerDetForObjectDetection": _GIVEN,
    "PPOCRV6MediumDetForObjectDetection": _GIVEN,
    "PPOCRV6MediumDetModel": _GIVEN,
    "Qwen3OmniMoeForConditionalGeneration": _FAULTY,
    "Sapiens2ForImageMatting": _GIVEN,
    "Sapiens2ForNormalEstimation": _GIVEN,
    "Sapiens2ForPointmapEstimation": _GIVEN,
    "Sapiens2ForPoseEstimation": _GIVEN,
    "Sapiens2ForSemanticSegmentation": _GIVEN,
}
"""Models that cannot be built from the defaults, with the reason."""


def names() -> list[str]:
    """Return the class of every model, sorted, those that cannot be built among them.

    Nothing of them is imported.
    """
    tasks = [getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES", {}) for task in TASKS]
    heard = vars(feature_extraction_auto)["FEATURE_EXTRACTOR_MAPPING_NAMES"]
    types = {*heard, *(each for table in tasks for each in table)}
    bases = {each: modeling_auto.MODEL_MAPPING_NAMES.get(each, ()) for each in types}
    found: set[str] = set(IN_NO_TABLE)
    for table in (*tasks, bases):
        for classes in table.values():
            found.update([classes] if isinstance(classes, str) else classes)
    return sorted(found)


def build(name: str) -> nn.Module:
    """Build a model on the meta device, deaf to what its library warns about.

    Of the layers of a language model, which are alike and hold no block, it has two: some models
    have hundreds, with which a plan takes a minute.
    """
    made = getattr(transformers, name)
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        transformers.logging.set_verbosity_error()
        short, whole = (made.config_class(**OPTIONS.get(name, {})) for _ in range(2))
        _shorten(short)
        try:
            return made(short).eval()
        except Exception:  # its parts name layers that it does not have now
            return made(whole).eval()


def _shorten(config: Any, layers: int = 2) -> None:
    """Leave a language model, in a configuration or a part of it, so many layers."""
    for value in vars(config).values():
        if isinstance(value, transformers.PretrainedConfig):
            _shorten(value)
    if not getattr(config, "vocab_size", None):
        return
    if isinstance(getattr(config, "num_hidden_layers", None), int):
        config.num_hidden_layers = min(layers, config.num_hidden_layers)
    if isinstance(getattr(config, "layer_types", None), list):
        config.layer_types = config.layer_types[:layers]


def inputs(model: Any) -> Iterator[Input]:
    """Yield what the model may be fed, on the meta device; not all of it need be right."""
    settings = [model.config, *vars(model.config).values()]
    side = _first(settings, "image_size") or 224
    sides = tuple(side) if isinstance(side, (list, tuple)) else (side, side)
    channels = _first(settings, "num_channels") or 3
    bins = _first(settings, "num_mel_bins", "feature_size", "input_feat_per_channel") or 80
    frames = _first(settings, "num_frames", "frames_per_clip") or 8
    shapes = {
        "pixel_values": [(channels, *sides), (channels, 224, 224), (channels, 640, 640)],
        "pixel_values_videos": [(frames, channels, *sides)],
        "input_values": [(1, 16000), (16000,), (1024, bins)],
        "input_features": [(bins, 3000), (600, bins), (3000, bins)],
        "spectrogram": [(bins, 100), (100, bins)],
        "latents": [(_first(settings, "hidden_size") or 512, 100)],
    }
    shapes["pixel_values"] += [(frames, *shapes["pixel_values"][0]), (2, channels, 224, 224)]
    taken = set(signature(model.forward).parameters)
    given = model.main_input_name
    if given not in shapes:  # of several modalities, of which text is the main one
        given = next((each for each in shapes if each in taken), given)
    others = {"input_ids", "decoder_input_ids"} & taken
    for shape in shapes.get(given, []):
        tensors = {given: torch.empty(1, *shape, device="meta")}
        yield Input(make=lambda tensors=tensors: dict(tensors))
        if others:
            more = dict.fromkeys(others, torch.ones(1, 8, dtype=torch.int64, device="meta"))
            yield Input(make=lambda tensors=tensors, more=more: {**tensors, **more})


def _first(settings: Iterable[Any], *fields: str) -> Any:
    found = (getattr(each, field, None) for each in settings for field in fields)
    return next((value for value in found if value), None)


def built_or_skipped(name: str) -> nn.Module:
    """Build a model for a test; one that is known not to build, or is of another version, skips."""
    if name in UNBUILT:
        pytest.skip(UNBUILT[name])
    try:
        return build(name)
    except Exception as error:
        if VERSION == RECORDED_WITH:
            raise
        pytest.skip(f"{type(error).__name__} in transformers {VERSION}: {error}")
