"""Checkpoints of the released NeuroNet and SynthSleepNet code as models of this package.

The scripts of github.com/dlcjfgmlnasa/SynthSleepNet and .../NeuroNet save ``best_model.pth`` for single channels, for
several, and for a downstream task. Every tensor must find its place with its shape; the result computes what the
released encoder computes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from sleepfm.config import to_dict
from sleepfm.constants import CHANNEL_MODALITY
from sleepfm.errors import ModelError
from sleepfm.models.downstream import Downstream, DownstreamConfig
from sleepfm.models.heads import HeadConfig
from sleepfm.models.neuronet import NeuroNet
from sleepfm.models.reference.names import DOWNSTREAM, NEURONET, SYNTHSLEEPNET, plain, rename
from sleepfm.models.reference.settings import (
    Section,
    context_config,
    inferred_config,
    neuronet_config,
    synthsleepnet_config,
)
from sleepfm.models.reference.torch_archive import read_archive
from sleepfm.models.synthsleepnet import SynthSleepNet
from sleepfm.models.usage import DEFAULT_THRESHOLD, DEFAULT_WINDOW, Usage

# Of the low-rank updates that the released fine-tuning adds; its code fixes it.
FINE_TUNING_ALPHA = 8.0


@dataclass(frozen=True)
class Conversion:
    """A converted model in eval mode and what a reader of it should know."""

    module: NeuroNet | SynthSleepNet | Downstream
    notes: tuple[str, ...] = ()


def convert(
    path: str | Path,
    task: str = "stage",
    classes: Sequence[str] = (),
    pretrained: str | Path | None = None,
    channels: Sequence[str] = (),
) -> Conversion:
    """Convert a reference checkpoint.

    Args:
        path: a ``best_model.pth`` of the unimodal, multimodal, linear probing or fine-tuning script.
        task, classes: what a downstream model predicts; its checkpoint holds only the number of classes.
        pretrained: the multimodal checkpoint that a downstream one was trained from, for settings that the latter lacks.
        channels: canonical channels of a unimodal network, where its checkpoint does not tell them.

    Raises:
        CheckpointError: not a file of ``torch.save``.
        ModelError: a checkpoint of none of these scripts, tensors without a place, missing or of another shape.
        ConfigError: settings that make no model.
    """
    saved = Section(read_archive(path), str(path))
    if "multimodal_model_state" in saved:
        return _multimodal(saved)
    state = _state(saved, "model_state")
    if any(name.startswith("autoencoder.") for name in state):
        module = NeuroNet(neuronet_config(saved, state, channels))
        _fill(module, rename(state, NEURONET, saved.origin), saved.origin)
        return Conversion(module.eval())
    if any(name.startswith("backbone.backbone_networks.") for name in state):
        return _downstream(state, task, classes, pretrained)
    raise ModelError(f"{path}: is not a released unimodal, multimodal or downstream checkpoint")


def _multimodal(saved: Section) -> Conversion:
    state = _state(saved, "multimodal_model_state")
    module = SynthSleepNet(synthsleepnet_config(saved, state))
    _fill(module, _gathered(rename(state, SYNTHSLEEPNET, saved.origin), module.channels), saved.origin)
    return Conversion(module.eval(), _names_note(module.channels))


def _downstream(state: Section, task: str, classes: Sequence[str], pretrained: str | Path | None) -> Conversion:
    _merge_lora(state, keep="attn.proj")
    count = state["fc.8.weight"].shape[0]
    if len(classes) != count:
        found = f"{len(classes)} ({', '.join(classes)})" if classes else "no"
        raise ModelError(f"{state.origin}: predicts {count} classes; task {task!r} comes with {found} class names")
    notes = ["The updates of fine-tuning's LoRA are merged into the weights they adapt."]
    if pretrained is None:
        settings = inferred_config(state)
        notes.append("Attention heads and the step between frames are the released defaults.")
    else:
        saved = Section(read_archive(pretrained), str(pretrained))
        settings = synthsleepnet_config(saved, _state(saved, "multimodal_model_state"))
    encoder = SynthSleepNet(settings)
    config = DownstreamConfig(
        task=task,
        classes=tuple(classes),
        encoder=to_dict(encoder.config),
        context=context_config(state),
        head=HeadConfig(kind="mlp", hidden=state["fc.0.weight"].shape[0]),
    )
    module = Downstream(config, encoder)
    renamed = _gathered(rename(state, DOWNSTREAM, state.origin), module.channels, "encoder.")
    # A class token that the released pretraining holds, never uses, and does not hand on.
    renamed["encoder.cls_token"] = torch.zeros(1, 1, encoder.dim)
    _fill(module, renamed, state.origin)
    # A checkpoint holds neither a window nor a threshold: the released ones are 20 epochs and the more probable class.
    binary = len(config.classes) == 2
    module.usage = Usage(
        task=task,
        classes=config.classes,
        window=DEFAULT_WINDOW,
        threshold=DEFAULT_THRESHOLD if binary else None,
        threshold_rule="default: the more probable class" if binary else None,
    )
    return Conversion(module.eval(), (*_names_note(module.channels), *notes))


def _state(saved: Section, key: str) -> Section:
    tensors = {str(name): value for name, value in saved.section(key).items() if isinstance(value, Tensor)}
    return Section(plain(tensors), saved.origin)


def _merge_lora(state: Section, keep: str) -> None:
    """Add every low-rank update to its weight, in place, but for layers named ``keep``, which stay adapted."""
    for name in [name for name in state if name.endswith(".lora_A.weight")]:
        layer = name.removesuffix(".lora_A.weight")
        if not layer.endswith(keep):
            low, high = state.pop(name), state.pop(f"{layer}.lora_B.weight")
            state[f"{layer}.weight"] = state[f"{layer}.weight"] + FINE_TUNING_ALPHA / math.sqrt(len(low)) * high @ low


def _gathered(state: dict[str, Tensor], channels: Sequence[str], prefix: str = "") -> dict[str, Tensor]:
    """Tensors by channel that are one tensor here: modality tokens stacked, low-rank updates with an axis of adapters."""
    gathered = {}
    for name, value in state.items():
        layer, _, leaf = name.rpartition(".")
        if name.endswith((".lora_A.weight", ".lora_B.weight")):
            gathered[layer.replace("lora_A", "lora_a").replace("lora_B", "lora_b")] = value[None]
        elif f"{layer}.lora_A.weight" in state:
            gathered[f"{layer}.base.{leaf}"] = value
        elif not name.startswith(f"{prefix}modality_token."):
            gathered[name] = value
    tokens = [state[f"{prefix}modality_token.{name}"] for name in channels]
    gathered[f"{prefix}modality_token"] = torch.cat(tokens)
    return gathered


def _fill(module: nn.Module, state: dict[str, Tensor], origin: str) -> None:
    """Load ``state`` strictly; shapes may differ by axes of one only."""
    own = module.state_dict()
    missing, left = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or left:
        raise ModelError(f"{origin}: lacks {missing[:3]} and has {left[:3]}, which contradicts its own settings")
    fitted = {}
    for name, target in own.items():
        value = state[name]
        if value.squeeze().shape != target.squeeze().shape:
            raise ModelError(f"{origin}: {name} is {list(value.shape)}, its settings make it {list(target.shape)}")
        fitted[name] = value.reshape(target.shape)
    module.load_state_dict(fitted)


def _names_note(channels: Sequence[str]) -> tuple[str, ...]:
    if not any(CHANNEL_MODALITY[name] == "EEG" for name in channels):
        return ()
    return ("EEG channels are named by the derivations that SHHS documents; the released code swaps C3 and C4.",)
