"""From a configuration to a module and back: what stands in a package's ``config.yaml``."""

from __future__ import annotations

from typing import Any

from torch import nn

from sleepfm.config import Config, to_dict, validate
from sleepfm.errors import ConfigError
from sleepfm.models.downstream import Downstream, DownstreamConfig
from sleepfm.models.masked_context import MaskedContext, MaskedContextConfig
from sleepfm.models.neuronet import NeuroNet, NeuroNetConfig
from sleepfm.models.synthsleepnet import SynthSleepNet, SynthSleepNetConfig

SCHEMAS: dict[str, type[Config]] = {
    "neuronet": NeuroNetConfig,
    "synthsleepnet": SynthSleepNetConfig,
    "context": MaskedContextConfig,
    "downstream": DownstreamConfig,
}


Model = NeuroNet | SynthSleepNet | MaskedContext | Downstream


def build_model(config: dict[str, Any], origin: str = "model") -> Model:
    """A freshly initialised model of ``config["kind"]``.

    Raises:
        ConfigError: unknown kind, or keys that the kind does not have.
    """
    kind = config.get("kind")
    if kind not in SCHEMAS:
        raise ConfigError(f"{origin}: unknown model kind {kind!r}; known: {', '.join(SCHEMAS)}")
    checked = validate(SCHEMAS[kind], config, origin)
    if isinstance(checked, NeuroNetConfig):
        return NeuroNet(checked)
    if isinstance(checked, SynthSleepNetConfig):
        return SynthSleepNet(checked)
    if isinstance(checked, MaskedContextConfig):
        return MaskedContext(checked, build_model(checked.encoder, f"{origin}.encoder"))
    assert isinstance(checked, DownstreamConfig)
    return Downstream(checked, build_model(checked.encoder, f"{origin}.encoder"))


def model_config(model: nn.Module) -> dict[str, Any]:
    """The inverse of :func:`build_model`, in plain types."""
    if not isinstance(model, Model):
        raise ConfigError(f"{type(model).__name__} is no model of this package")
    return to_dict(model.config)
