"""What the models that MLflow loads from a package share: nights in, one row a night out, errors as MLflow has them."""

from __future__ import annotations

import re
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST, INTERNAL_ERROR
from mlflow.pyfunc import PythonModel

from sleepfm.errors import InternalError, ModelError, RegistryError, SleepFMError
from sleepfm.serving.inputs import chosen_cohort, recordings
from sleepfm.signals.prepare import PreparedRecording
from sleepfm.signals.recording import opened_recording
from sleepfm.signals.scorings.finder import FoundScoring

# What is wrong with the model or this program, not with what was asked.
_OURS = (ModelError, RegistryError, InternalError)
# Where bytes of a request lie meanwhile, of which the caller knows nothing.
_PLACE = re.compile(re.escape(tempfile.gettempdir()) + r"/sleepfm-[^/\s]+/\d+/")


class NightModel(PythonModel, ABC):
    """A package in a folder, loaded by MLflow; of a server's parallel requests one night at a time is worked on.

    A night takes all processors and up to gigabytes of memory, so that several at once would neither be faster nor fit.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._busy = threading.Lock()
        self._row: Callable[[str, str], dict[str, Any]] | None = None

    def load_context(self, context: Any) -> None:
        """Load the package, with its digests checked. Raises :class:`RegistryError` and :class:`ModelError`."""
        self._row = self.load(self._folder)

    @abstractmethod
    def load(self, folder: Path) -> Callable[[str, str], dict[str, Any]]:
        """What makes a row from the path of a recording and the name of a cohort, by the package in ``folder``."""

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """One row for each recording.

        Raises:
            MlflowException: a recording is refused, for the reason that it says (``BAD_REQUEST``, status 400 of a server), or the
                model is not as it should be (``INTERNAL_ERROR``).
        """
        assert self._row is not None, "MLflow calls load_context first"
        try:
            cohort = chosen_cohort(params)
            with recordings(pd.DataFrame(model_input)) as paths, self._busy:
                # What is not known stays None: a column of texts would make nan of it, which is no JSON.
                return pd.DataFrame([self._row(path, cohort) for path in paths], dtype=object)
        except SleepFMError as error:
            code = INTERNAL_ERROR if isinstance(error, _OURS) else BAD_REQUEST
            raise MlflowException(_PLACE.sub("", str(error)), error_code=code) from error


def read_night(path: str, cohort: str) -> tuple[PreparedRecording, str | None]:
    """The recording at ``path``, and its date and time in ISO 8601 where they are known; nobody asks how a person scored it.

    Raises:
        RecordingError, MontageError, SignalError, ConfigError: see :func:`sleepfm.inference.scorer.prepare_night`.
    """
    from sleepfm.inference.scorer import prepare_night

    with opened_recording(path) as recording:
        start = recording.start
        return prepare_night(recording, cohort, FoundScoring(None)), None if start is None else start.isoformat()
