"""What a type checker reads of the package, as a user of it has it: `make check` fails where a type is lost."""

from __future__ import annotations

from pathlib import Path

import mne
import numpy as np
import pandas as pd
from PIL.Image import Image
from torch import Tensor

import sleepfm


def embeddings(model_folder: Path, raw: mne.io.BaseRaw) -> list[Tensor]:
    """Embeddings of everything that ``embed`` takes."""
    model = sleepfm.load(model_folder)
    recording = sleepfm.read_recording("night.edf")
    epochs = {name: np.zeros((2, 3000)) for name in model.channels}
    return [model.embed(epochs), model.embed(recording), model.embed("night.edf"), model.embed(raw, cohort="shhs1")]


def tables(path: str) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, Image, float]:
    """A scored night as tables, picture and figure."""
    night = sleepfm.score(path, sleepfm.from_pretrained("folder"))
    return night.stages_frame(), night.hypnodensity_frame(), night.events_frame(), night.plot(), night.ahi
