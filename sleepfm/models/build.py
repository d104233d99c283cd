"""From a configuration to a module and back: what stands in a package's ``config.yaml``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from sleepfm.config import Config, to_dict, validate
from sleepfm.errors import ConfigError
from sleepfm.models.downstream import Downstream, DownstreamConfig
from sleepfm.models.masked_context import MaskedContext, MaskedContextConfig
from sleepfm.models.neuronet import NeuroNet, NeuroNetConfig
from sleepfm.models.recording import RecordingModel, RecordingModelConfig
from sleepfm.models.synthsleepnet import SynthSleepNet, SynthSleepNetConfig


@dataclass(frozen=True)
class Kind:
    """One kind of model: its configuration, its class, and whether it is built on another model, ``config.encoder``."""

    config: type[Config]
    model: type[nn.Module]
    on_encoder: bool = False


KINDS = {
    "neuronet": Kind(NeuroNetConfig, NeuroNet),
    "synthsleepnet": Kind(SynthSleepNetConfig, SynthSleepNet),
    "context": Kind(MaskedContextConfig, MaskedContext, on_encoder=True),
    "downstream": Kind(DownstreamConfig, Downstream, on_encoder=True),
    "recording": Kind(RecordingModelConfig, RecordingModel, on_encoder=True),
}


def build_model(config: dict[str, Any], origin: str = "model") -> Any:
    """A freshly initialised model of ``config["kind"]``, a class of :data:`KINDS`.

    Raises:
        ConfigError: unknown kind, or keys that the kind does not have.
    """
    name = config.get("kind")
    if name not in KINDS:
        raise ConfigError(f"{origin}: unknown model kind {name!r}; known: {', '.join(KINDS)}")
    kind = KINDS[name]
    checked: Any = validate(kind.config, config, origin)
    encoder = [build_model(checked.encoder, f"{origin}.encoder")] if kind.on_encoder else []
    return kind.model(checked, *encoder)


def model_config(model: nn.Module) -> dict[str, Any]:
    """The inverse of :func:`build_model`, in plain types."""
    config = getattr(model, "config", None)
    if not isinstance(model, tuple(kind.model for kind in KINDS.values())) or not isinstance(config, Config):
        raise ConfigError(f"{type(model).__name__} is not a model of this package")
    return to_dict(config)
