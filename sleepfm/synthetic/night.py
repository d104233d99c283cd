"""One synthetic night: traits, scoring, the fourteen signals of an SHHS1 recording and what other montages need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sleepfm.constants import EPOCH_SECONDS, Stage
from sleepfm.synthetic.artefact import add_movements
from sleepfm.synthetic.belts import record_breathing
from sleepfm.synthetic.drawn_events import Event, draw_arousals, draw_position, draw_respiratory_events
from sleepfm.synthetic.ecg import beat_times, draw_ecg, draw_ectopic, heart_rate
from sleepfm.synthetic.eeg import draw_eeg
from sleepfm.synthetic.emg import draw_emg
from sleepfm.synthetic.eog import draw_eog
from sleepfm.synthetic.hypnogram import draw_hypnogram
from sleepfm.synthetic.microstate import Microstates, draw_microstates
from sleepfm.synthetic.noise import Floats
from sleepfm.synthetic.respiration import RATE as BREATHING_RATE
from sleepfm.synthetic.respiration import breathe, find_desaturations
from sleepfm.synthetic.subject import Subject, draw_subject

# A moving epoch whose signals are hidden for more than half of it is scored as movement (Rechtschaffen and
# Kales 1968).
MOVEMENT_SECONDS = 15.0
STAGE_4_SHARE = 0.45
# Codes of epochs without a stage: called unscored, or not written at all.
UNSCORED, NO_ROW = 9, -1


@dataclass(frozen=True)
class Note:
    """A text in the scoring that is neither a stage nor a respiratory event, desaturation or arousal.

    Attributes:
        onset, duration: seconds from the first sample.
        text: as written; group: its type in NSRR's XML, where it has one.
    """

    onset: float
    duration: float
    text: str
    group: str = ""


@dataclass(frozen=True)
class Night:
    """A finished night.

    Attributes:
        subject: whose.
        stages: [E] true stage; codes: [E] as scored by Rechtschaffen and Kales (3 or 4 for N3, 6 movement,
            :data:`UNSCORED` or :data:`NO_ROW`).
        events: all scored events in order of onset.
        signals: by the label they have in SHHS1, each [E * 30 * rate] in uV (ECG mV, SaO2 %). EEG and EOG are against a
            mastoid; so are the potentials "Fpz", "nasion" and "blinks" (:class:`sleepfm.synthetic.eog.EyePotentials`),
            which layouts subtract.
        start: clock time hh.mm.ss.
        notes: what else is written among the events.
        words: what the scorer writes in place of the format's text, by kind of event or code of a stage.
    """

    subject: Subject
    stages: NDArray[np.int8]
    codes: NDArray[np.int8]
    events: tuple[Event, ...]
    signals: dict[str, Floats]
    start: str
    notes: tuple[Note, ...] = ()
    words: Mapping[str, str] = field(default_factory=dict)


def draw_night(seed: int, number: int, n_epochs: int) -> Night:
    """Night of subject ``number`` in the cohort with ``seed``, ``n_epochs`` 30-s epochs long."""
    return night_of(draw_subject(seed, number), n_epochs)


def night_of(subject: Subject, n_epochs: int) -> Night:
    """The night of ``subject``, ``n_epochs`` 30-s epochs long."""
    rng = subject.rng("night")
    seconds = n_epochs * EPOCH_SECONDS
    stages = draw_hypnogram(subject, n_epochs)
    position = draw_position(subject, seconds)
    respiratory = draw_respiratory_events(subject, stages, position)
    breathing = breathe(subject, stages, position, respiratory)
    desaturations = find_desaturations(breathing.spo2, respiratory, subject.delay)
    arousals = draw_arousals(subject, stages, respiratory, desaturations)
    micro = draw_microstates(subject, stages, arousals)
    beats, ectopic = draw_ectopic(subject, beat_times(subject, stages, breathing, arousals))
    ecg = draw_ecg(subject, seconds, beats, breathing, ectopic)
    eeg = draw_eeg(subject, micro, ecg)
    eyes = draw_eog(subject, micro, eeg)
    emg = draw_emg(subject, micro, breathing, ecg)
    add_movements(rng, ecg, 125, micro.movements, size=0.25)
    flow, thorax, abdomen = record_breathing(subject, breathing, beats)
    for belt, size in ((thorax, 0.3), (abdomen, 0.3), (flow, 20.0)):
        add_movements(rng, belt, BREATHING_RATE, micro.movements, size=size)
    light = np.repeat((stages > Stage.W).cumsum() == 0, EPOCH_SECONDS)
    events = sorted([*respiratory, *arousals, *desaturations], key=lambda event: (event.onset, event.kind))
    hour, minute, second = rng.integers((21, 0, 0), (24, 60, 60)).tolist()
    return Night(
        subject=subject,
        stages=stages,
        codes=_codes(rng, stages, micro),
        events=tuple(events),
        signals={
            "SaO2": np.round(breathing.spo2),
            "H.R.": np.round(heart_rate(beats, seconds)),
            "EEG(sec)": eeg[0],
            "ECG": ecg,
            "EMG": emg,
            "EOG(L)": eyes.left,
            "EOG(R)": eyes.right,
            "EEG": eeg[1],
            "THOR RES": thorax,
            "ABDO RES": abdomen,
            "POSITION": position.astype(np.float32),
            "LIGHT": light.astype(np.float32),
            "NEW AIR": flow,
            "OX STAT": np.zeros(seconds, dtype=np.float32),
            "Fpz": eyes.fpz,
            "nasion": eyes.nasion,
            "blinks": eyes.blinks,
        },
        start=f"{hour:02d}.{minute:02d}.{second:02d}",
    )


def _codes(rng: np.random.Generator, stages: NDArray[np.int8], micro: Microstates) -> NDArray[np.int8]:
    codes = np.where(stages == Stage.REM, 5, stages).astype(np.int8)
    codes[(stages == Stage.N3) & (rng.random(len(stages)) < STAGE_4_SHARE)] = 4
    moving = np.zeros(len(stages) * EPOCH_SECONDS, dtype=np.float32)
    for onset, duration in micro.movements:
        moving[int(onset) : int(onset + duration)] = 1.0
    codes[moving.reshape(len(stages), -1).sum(axis=1) > MOVEMENT_SECONDS] = 6
    return codes
