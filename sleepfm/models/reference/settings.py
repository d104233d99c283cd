"""Configurations out of the released code's checkpoints: from the settings they hold, else from the shapes of their tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sleepfm.config import ConfigT, validate
from sleepfm.constants import CHANNEL_MODALITY, CHANNELS, EPOCH_SAMPLES, EPOCH_SECONDS, RATE_HZ
from sleepfm.errors import ModelError
from sleepfm.models.context import ContextConfig
from sleepfm.models.frame_encoder import FrameEncoder, FrameEncoderConfig
from sleepfm.models.frames import samples
from sleepfm.models.neuronet import NeuroNetConfig
from sleepfm.models.reference.names import canonical
from sleepfm.models.synthsleepnet import SynthSleepNetConfig

# What the released command lines default to and down-stream checkpoints do not hold.
HEADS = 8
NEURONET_DEFAULTS = {"mask_ratio": 0.8, "alpha": 1.0}
SYNTHSLEEPNET_DEFAULTS = {"mask_ratio": 0.4, "alpha": 1.0}


class Section(dict[str, Any]):
    """A part of a checkpoint; a key that it lacks is an error that names the file."""

    def __init__(self, values: Any, origin: str) -> None:
        if not isinstance(values, Mapping):
            raise ModelError(f"{origin}: not a checkpoint of the released scripts")
        super().__init__(values)
        self.origin = origin

    def __missing__(self, key: str) -> Any:
        raise ModelError(f"{self.origin}: no {key!r}; not a checkpoint of the released scripts, or incomplete")

    def section(self, key: str) -> Section:
        """The mapping under ``key``."""
        return Section(self[key], self.origin)


def neuronet_config(saved: Section, state: Section, channels: Sequence[str]) -> NeuroNetConfig:
    """Configuration of a unimodal checkpoint; its channels are all of its modality unless stated."""
    parameter = saved.section("model_parameter")
    values = _encoder(parameter) | {
        "channels": tuple(channels) or _channels(str(saved["model_name"]), saved.origin),
        "frame_encoder": _frame_encoder(state, ""),
        "decoder": _transformer(parameter, "decoder"),
        "projector": _widths(state, "projectors."),
        "temperature": parameter["temperature"],
        **_hyperparameters(saved, NEURONET_DEFAULTS),
    }
    return _validated(NeuroNetConfig, values, saved.origin)


def synthsleepnet_config(saved: Section, state: Section) -> SynthSleepNetConfig:
    """Configuration of a multimodal checkpoint."""
    own, lora = saved.section("multimodal_parameter"), saved.section("lora_parameter")
    names = [str(name) for name in saved["ch_names"]]
    prefix = f"backbone_networks.{names[0]}."
    values = {
        "channels": tuple(canonical(name, saved.origin) for name in names),
        "backbone": _encoder(saved.section("unimodal_parameter"))
        | {"frame_encoder": _frame_encoder(state, prefix), "position": "reference"},
        "lora": {"rank": lora["lora_r"], "alpha": lora["lora_alpha"], "dropout": lora["lora_dropout"]},
        "encoder": _transformer(own, "encoder"),
        "decoder": _transformer(own, "decoder"),
        "projector": _widths(state, "fusion_projector."),
        "temperature": own["temperature"],
        **_hyperparameters(saved, SYNTHSLEEPNET_DEFAULTS),
        "layout": "copies",
    }
    return _validated(SynthSleepNetConfig, values, saved.origin)


def inferred_config(state: Section) -> SynthSleepNetConfig:
    """Configuration of the encoder in a down-stream checkpoint, from shapes and the released defaults.

    Of the steps between frames that give the same number of frames, the longest is taken.
    """
    pattern = re.compile(r"backbone\.backbone_networks\.(\w+)\.cls_token$")
    names = [match[1] for match in map(pattern.match, state) if match]
    prefix = f"backbone.backbone_networks.{names[0]}."
    inside = Section({name.removeprefix(prefix): value for name, value in state.items()}, state.origin)
    frame_encoder = _frame_encoder(inside, "")
    window = _window(frame_encoder, inside["frame_backbone.feature_layer.0.weight"].shape[1], state.origin)
    frames = inside["pos_embed"].shape[1] - 1
    fusion = "backbone.multimodal_encoder_block."
    values = {
        "channels": tuple(canonical(name, state.origin) for name in names),
        "backbone": {
            "window_s": window,
            "step_s": (EPOCH_SAMPLES - samples(window)) // max(1, frames - 1) / RATE_HZ,
            "frame_encoder": frame_encoder,
            "encoder": {"dim": inside["cls_token"].shape[-1], "depth": _depth(inside, "encoder_block."), "heads": HEADS},
            "position": "reference",
        },
        "lora": {"rank": inside["encoder_block.0.attn.proj.lora_A.weight"].shape[0]},
        "encoder": {"dim": state[f"{fusion}0.norm1.weight"].shape[0], "depth": _depth(state, fusion), "heads": HEADS},
        "layout": "copies",
    }
    return _validated(SynthSleepNetConfig, values, state.origin)


def context_config(state: Section) -> ContextConfig:
    """Temporal context of a downstream checkpoint."""
    if not any(name.startswith("mamba.") for name in state):
        return ContextConfig(kind="none")
    inner, (conv_size, _, width) = state["mamba.norm.weight"].shape[0], state["mamba.conv1d.weight"].shape
    return ContextConfig(
        kind="mamba",
        d_state=(conv_size - inner) // 2,
        d_conv=width,
        expand=inner // state["norm.weight"].shape[0],
        headdim=inner // state["mamba.A_log"].shape[0],
    )


def _validated(schema: type[ConfigT], values: dict[str, Any], origin: str) -> ConfigT:
    return validate(schema, values | {"position": "reference"}, origin)


def _encoder(parameter: Section) -> dict[str, Any]:
    if parameter["fs"] != RATE_HZ or parameter["second"] != EPOCH_SECONDS:
        found = f"{parameter['second']} s at {parameter['fs']} Hz"
        raise ModelError(f"{parameter.origin}: for epochs of {found}; here they are {EPOCH_SECONDS} s at {RATE_HZ} Hz")
    return {
        "window_s": parameter["time_window"],
        "step_s": parameter["time_step"],
        "encoder": _transformer(parameter, "encoder"),
    }


def _transformer(parameter: Section, part: str) -> dict[str, Any]:
    return {
        "dim": parameter[f"{part}_embed_dim"],
        "depth": parameter[f"{part}_depths"],
        "heads": parameter[f"{part}_heads"],
    }


def _hyperparameters(saved: Section, defaults: Mapping[str, Any]) -> dict[str, Any]:
    stated = Section(saved.get("hyperparameter", {}), saved.origin)
    return {name: stated.get(name, default) for name, default in defaults.items()}


def _frame_encoder(state: Section, prefix: str) -> dict[str, Any]:
    model = f"{prefix}frame_backbone.model."
    squeeze = state.get(f"{model}layer3x3_1.0.se.fc.0.weight")
    values = {
        "stem": state[f"{model}conv1.weight"].shape[0],
        "channels": tuple(state[f"{model}layer3x3_{block}.0.conv1.weight"].shape[0] for block in range(1, 5)),
        "squeeze": squeeze is not None,
    }
    return values if squeeze is None else values | {"reduction": squeeze.shape[1] // squeeze.shape[0]}


def _window(frame_encoder: Mapping[str, Any], flat: int, origin: str) -> int:
    """Seconds of a frame whose flattened features are ``flat`` wide; the released code takes whole seconds from 3."""
    config = validate(FrameEncoderConfig, dict(frame_encoder), origin)
    for seconds in range(3, EPOCH_SECONDS + 1):
        with torch.device("meta"):
            layer = FrameEncoder(config, samples(seconds)).feature_layer[0]
        assert isinstance(layer, nn.Linear)
        if layer.in_features == flat:
            return seconds
    raise ModelError(f"{origin}: no whole number of seconds gives frame features of width {flat}")


def _depth(state: Mapping[str, Tensor], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})


def _widths(state: Mapping[str, Tensor], prefix: str) -> tuple[int, ...]:
    pattern = re.compile(rf"{re.escape(prefix)}(\d+)\.weight")
    linear = {int(match[1]): value for name, value in state.items() if (match := pattern.fullmatch(name))}
    return tuple(linear[place].shape[0] for place in sorted(linear) if linear[place].ndim == 2)


def _channels(model_name: str, origin: str) -> tuple[str, ...]:
    """All channels of a network's modality; NeuroNet's own repository, which names none, trains on EEG."""
    modality = model_name.removeprefix("NeuroNet").removeprefix("-") or "EEG"
    found = tuple(name for name in CHANNELS if CHANNEL_MODALITY[name] == modality)
    if not found:
        raise ModelError(f"{origin}: model name {model_name!r} does not name a modality; give --channels")
    return found
