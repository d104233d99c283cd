"""Stages and events written as EDF+ annotations: a hypnogram file, or texts inside the recording itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

from sleepfm.signals.edf.annotations import Annotation
from sleepfm.signals.scorings.event_words import KNOWN, EventWords
from sleepfm.signals.scorings.rows import Row, scoring_of_rows
from sleepfm.signals.scorings.scoring import Scoring
from sleepfm.signals.scorings.stage_texts import number_reader
from sleepfm.signals.scorings.vocabulary import fold, names_a_stage, stage_of


def from_annotations(
    annotations: Sequence[Annotation], source: str, shift: float = 0.0, words: EventWords = KNOWN
) -> Scoring | None:
    """Scoring of EDF+ texts ("Sleep stage 2", "Sleep stage N2", "Obstructive apnea"), or None without a stage.

    ``shift`` is added to every onset. A stage without a duration lasts until the next one, at most an epoch.
    A single character ("W", "?") is a stage only beside a text that can be nothing else: it may as well be a beat.

    Raises:
        StageTextError: a text where stages stand that is not understood ("Sleep stage X").
    """
    ordered = sorted(annotations, key=lambda item: item.onset)
    texts = [_text(item) for item in ordered]
    if not any(names_a_stage(text) or (len(fold(text)) > 1 and stage_of(text) is not None) for text in texts):
        return None
    rows = [Row(item.onset + shift, item.duration, text) for item, text in zip(ordered, texts, strict=True)]
    return scoring_of_rows(rows, source, source, stage=number_reader(texts, stage_of, {}, PurePath(source)), words=words)


def _text(item: Annotation) -> str:
    # Some programs append the electrode after "@@" (EDF+ specification 2.2.3).
    return item.text.split("@@")[0]
