"""What scorers leave out, add, and call by other names."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sleepfm.constants import APNEA_TYPES, EPOCH_SECONDS
from sleepfm.synthetic.faults.draft import Draft
from sleepfm.synthetic.faults.rates import Kindless, Length, Notes, Share, Stretches
from sleepfm.synthetic.faults.texts import FORMATS, NOTES
from sleepfm.synthetic.night import NO_ROW, UNSCORED, Note

NOTE_SECONDS = 40.0


def blank_code(draft: Draft, rng: np.random.Generator, at_end: bool) -> int:
    """How epochs that nobody scored are written: called unscored, or left out where the format can."""
    form = FORMATS[draft.form]
    possible = form.may_end_early if at_end else form.may_start_late
    return NO_ROW if rng.random() < 0.5 and possible else UNSCORED


def draw_scored_span(draft: Draft, late: Length, early: Length) -> None:
    """A scoring that begins after the recording and one that ends before the night does."""
    for kind, rate in (("late_start", late), ("early_end", early)):
        rng = draft.rng(kind)
        if not rate.happens(rng):
            continue
        night = draft.seconds // EPOCH_SECONDS
        epochs = max(1, rate.length(rng, draft.seconds) // EPOCH_SECONDS)
        at_end = kind == "early_end"
        code = blank_code(draft, rng, at_end)
        first = night - epochs if at_end else 0
        draft.codes[first : first + epochs] = code
        draft.note(kind, first * EPOCH_SECONDS, epochs * EPOCH_SECONDS, code=code)


def draw_unscored(draft: Draft, rate: Stretches) -> None:
    """Stretches that the scorer left without a stage."""
    rng = draft.rng("unscored")
    for begin, end in rate.draw(rng, draft.seconds):
        first, stop = begin // EPOCH_SECONDS, -(-end // EPOCH_SECONDS)
        draft.codes[first:stop] = UNSCORED
        draft.note("unscored", first * EPOCH_SECONDS, (stop - first) * EPOCH_SECONDS, code=UNSCORED)


def hide_epochs_without_eeg(draft: Draft) -> None:
    """Leave epochs unscored in which both EEG are off or saturated for more than half."""
    bad = np.zeros((2, len(draft.codes) * EPOCH_SECONDS), dtype=np.bool_)
    for fault in draft.faults:
        for row, name in enumerate(("C3", "C4")):
            if fault.kind in ("electrode_off", "electrode_lost", "saturation") and name in fault.sources:
                bad[row, int(fault.onset) : int(fault.onset + fault.duration)] = True
    blind = bad.all(axis=0).reshape(-1, EPOCH_SECONDS).mean(axis=1) > 0.5
    draft.codes[blind] = UNSCORED


def draw_notes(draft: Draft, rate: Notes) -> None:
    """A technician's free texts among the events, where the format holds texts."""
    rng = draft.rng("notes")
    if not rate.happens(rng) or not FORMATS[draft.form].holds_notes:
        return
    for _ in range(1 + int(rng.poisson(rate.per_hour * draft.seconds / 3600.0))):
        onset = round(float(rng.uniform(0.0, draft.seconds - NOTE_SECONDS)), 1)
        duration = 0.0 if rng.random() < 0.7 else round(float(rng.uniform(1.0, NOTE_SECONDS)), 1)
        text = str(rng.choice(NOTES))
        draft.notes.append(Note(onset, duration, text))
        draft.note("notes", onset, duration, text=text)


def draw_kindless_apneas(draft: Draft, rate: Kindless) -> None:
    """Apneas of which the scorer does not say the kind: all of the night's, or about half of them."""
    rng = draft.rng("kindless_apnea")
    if not rate.happens(rng) or not FORMATS[draft.form].holds_events:
        return
    part = 1.0 if rng.random() < rate.all_share else 0.5
    for place, event in enumerate(draft.events):
        if event.kind in APNEA_TYPES and rng.random() < part:
            draft.events[place] = replace(event, kind="apnea")
            draft.note("kindless_apnea", event.onset, event.duration, true_kind=event.kind)


def draw_vocabulary(draft: Draft, rate: Share) -> None:
    """Words of the scorer's own, some of which no reader can know."""
    rng = draft.rng("vocabulary")
    choices = FORMATS[draft.form].vocabularies
    if rate.happens(rng) and choices:
        draft.words |= choices[int(rng.integers(len(choices)))]
        draft.note("vocabulary", 0, draft.seconds, words=dict(draft.words))
