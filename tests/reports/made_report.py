"""A scored night whose models say nearly what its human says, with doubt, errors and everything that a page shows; and
evaluations.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np

from sleepfm.constants import EPOCH_SECONDS
from sleepfm.evaluation.desaturations import read_saturation
from sleepfm.evaluation.event_figures import ComparedNight, agreement_of_nights, event_metrics
from sleepfm.evaluation.event_results import EventResult
from sleepfm.evaluation.events import event_family
from sleepfm.evaluation.lights import BY_OPTION, Lights
from sleepfm.evaluation.metrics import evaluate
from sleepfm.evaluation.night_agreement import sleep_agreement
from sleepfm.evaluation.paired import paired_agreement
from sleepfm.evaluation.prediction_figures import index_agreement
from sleepfm.evaluation.predictions import Predictions
from sleepfm.evaluation.regression import evaluate_regression
from sleepfm.evaluation.stretches import stretch_warnings
from sleepfm.inference.night_score import NightScore
from sleepfm.inference.scorer import prepare_night
from sleepfm.inference.subsets import SubsetAhi, SubsetResult
from sleepfm.reports.evaluation_page import RegressionResult, Result
from sleepfm.reports.lineage import Lineage, Node
from sleepfm.reports.night_facts import NightExample
from sleepfm.reports.report import ReportData, StepCost
from sleepfm.signals.position import BodyPosition
from sleepfm.signals.prepare import PreparedRecording
from sleepfm.signals.quality import Quality, unusable
from sleepfm.signals.scorings.scoring import Event
from sleepfm.tasks import TASKS
from sleepfm.training.tracking.trace import Trace

EVENT_TASKS = ("apnea", "hypopnea", "arousal")
BREATHING = ("AIRFLOW", "THORAX", "ABDOMEN")


def made_example(recording: Path | PreparedRecording, times: int = 1, seed: int = 0) -> NightExample:
    """The night of ``recording``, scored, ``times`` in a row: stages with a confidence, events with probabilities of seconds."""
    night = recording if isinstance(recording, PreparedRecording) else prepare_night(recording)
    night = repeated(night, times)
    rng, n_epochs = np.random.default_rng(seed), night.n_epochs
    truth = np.where(night.stage >= 0, night.stage, 0)
    density = rng.dirichlet(np.full(5, 0.7), n_epochs) * 0.6
    density[np.arange(n_epochs), truth] += 0.4
    density[n_epochs // 3 : n_epochs // 3 + 2] = np.nan
    unscored = np.isnan(density).any(axis=1)
    stages = np.where(unscored, -1, np.nan_to_num(density).argmax(axis=1)).astype(np.int8)
    events, seconds = [], {task: rng.uniform(0, 0.3, n_epochs * EPOCH_SECONDS) for task in EVENT_TASKS}
    for event in night.events:
        family = event_family(event.type)
        if family not in EVENT_TASKS or rng.random() < 0.1:
            continue
        onset = max(0.0, np.round(event.onset + rng.normal(0, 2)))
        moved = Event(float(onset), float(max(10, np.round(event.duration))), event.type)
        if moved.onset + moved.duration < n_epochs * EPOCH_SECONDS:
            events.append(moved)
            seconds[family][int(onset) : int(onset + moved.duration)] = rng.uniform(0.5, 1)
    lost = "EEG_C4"
    night.quality[lost][n_epochs // 3 : n_epochs // 3 + 2] |= np.uint8(Quality.DISCONNECTED)
    night.quality["ECG"][n_epochs // 2 : n_epochs // 2 + 20] |= np.uint8(Quality.MAINS)
    score = NightScore(
        record=night.record,
        channels=tuple(night.channels)[:9],
        models={"stage": "models:/sleepfm-stage/3"} | {task: f"models:/sleepfm-{task}/2" for task in EVENT_TASKS},
        stages=stages,
        hypnodensity=density,
        probability={t: s.reshape(n_epochs, -1).max(axis=1) for t, s in seconds.items()},
        threshold=dict.fromkeys(EVENT_TASKS, 0.5),
        events=tuple(sorted(set(events), key=lambda event: (event.onset, event.type))),
        warnings=tuple(stretch_warnings(night, tuple(night.channels))),
        event_threshold=dict.fromkeys(EVENT_TASKS, 0.5),
        inputs={
            "stage": tuple(name for name in night.channels if name not in (*BREATHING, "SPO2")),
            "apnea": BREATHING,
            "hypopnea": BREATHING,
            "arousal": ("EEG_C3", "EEG_C4"),
        },
        saturation=read_saturation(night.channels["SPO2"], unusable(night.quality["SPO2"])),
        seconds=seconds,
        lights=Lights(n_epochs * 1.0, n_epochs * 29.0, BY_OPTION, BY_OPTION),
    )
    lying = np.repeat(np.arange(-(-n_epochs // 40)) % 3, 40)[:n_epochs].astype(np.int8)
    position = BodyPosition(("supine", "left", "right"), lying)
    return NightExample(score, night, start=datetime(2021, 3, 4, 22, 41, 30), position=position)


def made_warnings(night: PreparedRecording, seed: int = 0) -> tuple[str, ...]:
    """What would be said of ``night`` if every electrode and sensor came off now and then."""
    rng, quality = np.random.default_rng(seed), {name: flags.copy() for name, flags in night.quality.items()}
    for flags in quality.values():
        for start in rng.integers(0, night.n_epochs - 10, 7).tolist():
            flags[start : start + int(rng.integers(1, 9))] |= np.uint8(Quality.DISCONNECTED)
    found = stretch_warnings(replace(night, quality=quality), tuple(quality))
    return (*found, "the models saw 2 hypopneas, the longest of 200 s (from 03:00:00); look at the signals there")


def without_breathing(example: NightExample) -> NightExample:
    """The same recording without flow, belts and oximetry, and nobody's scoring."""
    score, night = example.score, example.prepared
    gone = (*BREATHING, "SPO2")
    kept = {name: samples for name, samples in night.channels.items() if name not in gone}
    unheard = dict.fromkeys(("apnea", "hypopnea"), np.full(night.n_epochs, np.nan))
    return replace(
        example,
        position=None,
        score=replace(
            score,
            channels=tuple(kept),
            events=tuple(event for event in score.events if event.type == "arousal"),
            probability={"arousal": score.probability["arousal"], **unheard},
            seconds={"arousal": score.seconds["arousal"]},
            saturation=None,
            without_evidence=("apnea", "hypopnea"),
            inputs={"stage": tuple(kept), "apnea": (), "hypopnea": (), "arousal": ("EEG_C3", "EEG_C4")},
            warnings=("apnea: not assessed, since the recording has no usable channel of AIRFLOW, THORAX, ABDOMEN",),
        ),
        prepared=replace(
            night,
            channels=kept,
            quality={name: night.quality[name] for name in kept},
            events=(),
            stage=np.full_like(night.stage, -1),
            labels={name: np.full_like(values, -1) for name, values in night.labels.items()},
        ),
    )


def repeated(night: PreparedRecording, times: int) -> PreparedRecording:
    """``times`` the night, one after the other."""
    length = night.n_epochs * float(EPOCH_SECONDS)
    return replace(
        night,
        n_epochs=night.n_epochs * times,
        channels={name: np.tile(samples, times) for name, samples in night.channels.items()},
        quality={name: np.tile(flags, times) for name, flags in night.quality.items()},
        stage=np.tile(night.stage, times),
        labels={name: np.tile(values, times) for name, values in night.labels.items()},
        events=tuple(replace(e, onset=e.onset + length * n) for n in range(times) for e in night.events),
    )


def made_regression(n_people: int = 30) -> RegressionResult:
    """Ages of some people by a model that is some years off."""
    rng = np.random.default_rng(0)
    truth = rng.uniform(20, 90, n_people)
    estimate, subject = truth + rng.normal(2, 6, n_people), [f"person-{n}" for n in range(n_people)]
    found = evaluate_regression("age", truth, estimate, subject, 55.0, unit="years", n_boot=50)
    paired = paired_agreement("age", truth, estimate, subject, unit="years", n_boot=0)
    return RegressionResult("age of a recording", "sleepfm-age", "test", found, paired, "none: nobody")


def made_result(n_people: int = 12, n_epochs: int = 60) -> Result:
    """Stages of some people by a model that is right four times out of five."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 5, n_people * n_epochs)
    density = rng.dirichlet(np.ones(5), len(truth)) * 0.5
    density[np.arange(len(truth)), np.where(rng.random(len(truth)) < 0.8, truth, (truth + 1) % 5)] += 0.5
    subject = np.repeat([f"person-{n}" for n in range(n_people)], n_epochs)
    found = evaluate(TASKS["stage"], truth, density, subject, n_boot=50)
    predictions = Predictions(subject, subject, np.tile(np.arange(n_epochs), n_people), truth, density)
    rows = [(fraction, seed) for fraction in (0.01, 0.1, 1.0) for seed in range(3)]
    curve = [{"fraction": fraction, "seed": seed, "kappa": 0.6 + 0.2 * fraction - 0.02 * seed} for fraction, seed in rows]
    result = Result("Stages", "sleepfm-stage v3", "test", found, 700, predictions=predictions, label_curve=curve)
    return replace(result, leakage="none", sleep=sleep_agreement(predictions, resamples=20))


def made_apneas(n_people: int = 12) -> Result:
    """Apneas of some people by a model that tells their kinds, and is wrong about every fourth."""
    kinds, nights = ("obstructive_apnea", "central_apnea", "mixed_apnea"), []
    rng = np.random.default_rng(0)
    for person in range(n_people):
        scored = tuple(Event(60.0 * n, 20.0, str(rng.choice(kinds))) for n in range(20))
        told = tuple(replace(event, type=str(rng.choice(kinds)) if n % 4 == 0 else event.type) for n, event in enumerate(scored))
        nights.append(
            ComparedNight(f"night-{person}", f"person-{person}", told[1:], scored, np.ones(40, bool), np.ones(40, bool), kinds)
        )
    truth = rng.integers(0, 2, n_people * 40)
    likely = np.clip(0.3 + 0.4 * truth + rng.normal(0, 0.2, len(truth)), 0.01, 0.99)
    subject = np.repeat([f"person-{n}" for n in range(n_people)], 40)
    found = evaluate(TASKS["apnea"], truth, np.column_stack([1 - likely, likely]), subject, n_boot=50)
    agreement, _ = agreement_of_nights(nights)
    index = index_agreement(nights, "apnea", resamples=50)
    events = EventResult("apnea", True, 0.3, n_people, agreement, event_metrics(nights, 50), index)
    return Result("Apnea", "sleepfm-apnea v2", "test", found, 480, agreement, located=True, event_result=events)


def made_run(example: NightExample, folder: Path) -> ReportData:
    """The report of a run with all parts that it can have; its trace goes into ``folder``."""
    trace = Trace(folder / "trace.jsonl", 0)
    for step in range(1, 40):
        trace.append({"step": step, "loss": 1 / step, "parts": {"contrastive": 0.5 / step}})
    trace.close()
    stages, apneas = made_result(), made_apneas()
    assert apneas.event_result is not None
    lineage = Lineage(
        (
            Node("d", "data", "shards"),
            Node("e", "pretrained", "sleepfm-synthsleepnet v1"),
            Node("m", "downstream", "sleepfm-stage v1"),
        ),
        (("d", "e"), ("e", "m")),
    )
    return ReportData(
        title="A run",
        summary="Every step on a synthetic cohort.",
        results=[stages, apneas],
        traces={"pretrain-eeg": folder / "trace.jsonl", "probe-stage": folder / "trace.jsonl"},
        night=example,
        ahi=apneas.event_result.index,
        subsets={
            "stage": [SubsetResult(("EEG", "EOG"), stages.evaluation), SubsetResult(("EEG",), stages.evaluation)],
            "apnea": [SubsetResult(("RESP",), apneas.evaluation, apneas.event_result)],
        },
        ahi_subsets=[SubsetAhi(("EEG", "RESP"), apneas.event_result.index), SubsetAhi(("EEG",), None, "no model takes it")],
        lineage=lineage,
        environment={"python": "3.11", "machine": "2 cores"},
        configuration={"probe.yaml": "train:\n  output: a/folder/whose/name/is/long/enough/to/leave/the/window/of/a/telephone\n"},
        steps=[StepCost("synth", 3.0, 2**30), StepCost("shards", 4.5)],
        notes=["a note"],
    )
