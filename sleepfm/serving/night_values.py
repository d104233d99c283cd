"""What a model of recordings says of nights (age, sex, AHI class), by a package that MLflow loads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from sleepfm.errors import ModelError
from sleepfm.serving.night_embeddings import embedded_night
from sleepfm.serving.night_model import NightModel


class NightValues(NightModel):
    """``value`` is a number in ``unit``, or the name of a class, with ``probability`` of each class by name.

    Of two classes the second is named where its probability reaches the threshold that was chosen on ``val``. ``value`` is null
    where no epoch has a usable channel of the model.
    """

    def load(self, folder: Path) -> Callable[[str, str], dict[str, Any]]:
        from sleepfm.models.device import choose_device
        from sleepfm.models.recording import RecordingModel
        from sleepfm.registry.registry import load_package

        package = load_package(folder)
        module = package.module.to(choose_device("auto")).eval()
        if not isinstance(module, RecordingModel):
            raise ModelError(f"{folder}: no model of recordings")
        config, threshold = module.config, package.config.get("usage", {}).get("threshold")

        def row(path: str, cohort: str) -> dict[str, Any]:
            facts, embedding = embedded_night(module.encoder, path, cohort)
            found = module.of_night(embedding)
            value: Any = None
            probability = None
            if found.isfinite().all():
                value = named(found, config.classes, threshold) if config.classes else found.item()
                probability = dict(zip(config.classes, found.tolist(), strict=True)) if config.classes else None
            return facts | {"task": config.task, "value": value, "unit": config.unit, "probability": probability}

        return row


def named(probability: Tensor, classes: Sequence[str], threshold: float | None) -> str:
    """The class that ``probability`` [K] means: the most probable one; of two, by ``threshold`` if there is one."""
    if threshold is not None and len(classes) == 2:
        return classes[int(probability[1] >= threshold)]
    return classes[int(probability.argmax())]
