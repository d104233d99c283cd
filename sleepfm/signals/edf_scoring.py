"""Stages and events written as EDF+ annotations: a hypnogram file, or texts inside the recording itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sleepfm.signals.edf_annotations import Annotation
from sleepfm.signals.scoring_types import Event, Scoring, StageInterval
from sleepfm.signals.vocabulary import event_of, fold, stage_of

_EPOCH_SECONDS = 30.0


def from_annotations(annotations: Sequence[Annotation], source: str, shift: float = 0.0) -> Scoring | None:
    """Scoring of EDF+ texts ("Sleep stage 2", "Sleep stage N2", "Obstructive apnea"), or None without a stage.

    ``shift`` is added to every onset. A stage without a duration lasts until the next one, at most an epoch.
    A single character ("W", "?") is a stage only beside a text that can be nothing else: it may as well be a beat.
    """
    stages: list[StageInterval] = []
    events: list[Event] = []
    ignored: Counter[str] = Counter()
    ordered = sorted(annotations, key=lambda item: item.onset)
    if not any(len(fold(_text(item))) > 1 and stage_of(_text(item)) is not None for item in ordered):
        return None
    onsets = [item.onset for item in ordered if stage_of(_text(item)) is not None]
    for item in ordered:
        text = _text(item)
        stage = stage_of(text)
        if stage is not None:
            following = onsets[len(stages) + 1] if len(stages) + 1 < len(onsets) else item.onset + _EPOCH_SECONDS
            duration = item.duration or min(_EPOCH_SECONDS, following - item.onset)
            stages.append(StageInterval(item.onset + shift, duration, int(stage)))
        elif event := event_of(text):
            events.append(Event(item.onset + shift, item.duration, event))
        else:
            ignored[text] += 1
    return Scoring(
        stages=tuple(stages),
        events=tuple(events),
        source=source,
        has_events=bool(events),
        ignored=dict(ignored.most_common(20)),
    )


def _text(item: Annotation) -> str:
    # Some programs append the electrode after "@@" (EDF+ specification 2.2.3).
    return item.text.split("@@")[0]
