"""Hypnograms as EDF+ annotations (Sleep-EDF and EDF+ 3.x standard texts): R&K and AASM stage names."""

from __future__ import annotations

from pathlib import Path

from sleepfm.constants import Stage
from sleepfm.errors import AnnotationError, RecordingError
from sleepfm.signals.annotations import Scoring, StageInterval
from sleepfm.signals.recording import read_recording

# EDF+ standard texts; "?" and movement are unscored.
STAGE_OF_TEXT = {
    "w": Stage.W,
    "1": Stage.N1,
    "2": Stage.N2,
    "3": Stage.N3,
    "4": Stage.N3,
    "n1": Stage.N1,
    "n2": Stage.N2,
    "n3": Stage.N3,
    "n4": Stage.N3,
    "r": Stage.REM,
    "rem": Stage.REM,
    "?": Stage.UNSCORED,
    "m": Stage.UNSCORED,
}


def read(path: Path) -> Scoring:
    """Read the stage annotations of an EDF+ or BDF+ file; other annotations are left alone.

    Raises:
        AnnotationError: the file cannot be read, or a stage has an unknown name.
    """
    try:
        recording = read_recording(path)
    except RecordingError as error:
        raise AnnotationError(str(error)) from error
    stages = []
    for annotation in recording.annotations:
        text = annotation.text.casefold()
        if text.startswith("sleep stage "):
            name = text.removeprefix("sleep stage ").strip()
            if name not in STAGE_OF_TEXT:
                raise AnnotationError(f"{path}: unknown stage {annotation.text!r} at {annotation.onset:g} s")
            stages.append(StageInterval(annotation.onset, annotation.duration, int(STAGE_OF_TEXT[name])))
        elif text == "movement time":
            stages.append(StageInterval(annotation.onset, annotation.duration, int(Stage.UNSCORED)))
    return Scoring(tuple(stages), (), str(path), has_events=False, covers_recording=True, start=recording.start)
