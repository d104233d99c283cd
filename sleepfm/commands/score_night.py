"""One recording in, its folder of results out: what a process of ``sleepfm score`` does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, time
from functools import cached_property, lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm

from sleepfm.commands.score_inputs import Job
from sleepfm.errors import MontageError, RecordingError, SleepFMError, UsageError
from sleepfm.evaluation.lights import BY_ANNOTATION, BY_OPTION, BY_RULE, Lights
from sleepfm.files import read_json
from sleepfm.inference.night_score import NightScore
from sleepfm.inference.scorer import Scorer, prepare_night, scorings_root
from sleepfm.models.device import Precision, choose_device
from sleepfm.output import Origin, check_free, holds, missing, strangers, whole_folder
from sleepfm.signals.cohorts.by_hand import with_channels
from sleepfm.signals.cohorts.catalogue import Rules, load_rules, recognise_cohort
from sleepfm.signals.cohorts.cohort import Cohort
from sleepfm.signals.examine import examine
from sleepfm.signals.files import file_sha256, location
from sleepfm.signals.position import parse_position, read_position
from sleepfm.signals.prepare import PreparedRecording
from sleepfm.signals.record_names import RecordName
from sleepfm.signals.recording import Recording, opened_recording
from sleepfm.signals.scorings.finder import FoundScoring
from sleepfm.signals.scorings.lights import find_lights
from sleepfm.version import __version__

KIND = "scored night"
SUMMARY = "summary.json"
_DAY = 86_400.0


@dataclass(frozen=True)
class Plan:
    """What a call of ``sleepfm score`` does with each recording; equal in all its processes."""

    models: tuple[str, ...]
    out: Path
    cohort: str = "auto"
    store: str | None = None
    device: str = "auto"
    channels: dict[str, str] = field(default_factory=dict)
    lights_off: str | None = None
    lights_on: str | None = None
    resolution: int = 30
    scoring: str | None = None
    again: bool = False
    threads: int | None = None
    precision: Precision = "auto"
    progress: bool = False
    position: str | None = None
    show_identity: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of a recording; ``line`` is the night in a line, ``reason`` why it was refused, ``lacks`` what a scored night
    is without (``stages``, ``events``), or empty.
    """

    status: Literal["scored", "done before", "refused"]
    file: str
    record: str = ""
    folder: str = ""
    line: str = ""
    warnings: tuple[str, ...] = ()
    reason: str = ""
    lacks: str = ""


class NightScorer:
    """Models loaded once, with the first recording, for any number of them."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    @cached_property
    def _rules(self) -> Rules:
        return load_rules(self._plan.cohort)

    @cached_property
    def _scorer(self) -> Scorer:
        if self._plan.threads is not None:
            torch.set_num_threads(self._plan.threads)
        plan = self._plan
        return Scorer.load(plan.models, plan.store, choose_device(plan.device), plan.precision)

    def score(self, job: Job) -> Outcome:
        """Score and write a night, unless its folder holds the very same already. Refusals are outcomes, not errors.

        Raises:
            RegistryError, ModelError, ConfigError: the models cannot be loaded, which is no recording's fault.
        """
        scorer = self._scorer
        try:
            return self._score(scorer, job)
        except SleepFMError as error:
            return Outcome("refused", job.file, reason=str(error))

    def _score(self, scorer: Scorer, job: Job) -> Outcome:
        plan = self._plan
        scoring = location(plan.scoring) if plan.scoring else job.scoring
        with opened_recording(job.file) as recording:
            cohort = recognise_cohort(recording.name, (signal.label for signal in recording.signals), self._rules)
            cohort = with_channels(cohort, plan.channels)
            found = examine(recording, cohort, scorings_root(recording.path), scoring)
            origin = _origin(job.file)
            called = self._called(job, recording.path.name, origin)
            record, folder = called.record, plan.out / called.record
            # Before the work.
            check_free(folder, origin)
            made_with = self._made_with(cohort, found.scoring_file)
            if not plan.again and is_done(folder, made_with):
                return Outcome("done before", job.file, record, str(folder))
            others = found.scoring.others if found.scoring else ()
            texts = [(item.onset, item.text) for item in recording.annotations] + [(item.onset, item.type) for item in others]
            lights = choose_lights(recording, texts, plan.lights_off, plan.lights_on)
            writing = report_writer()
            used = FoundScoring(found.scoring_file) if scoring is None else scoring
            night = prepare_night(recording, cohort, used, called)
            _check_channels(night, plan.channels)
            start = recording.start
            position = read_position(recording, parse_position(plan.position), night.n_epochs) if plan.position else None
            identity = recording.patient.strip() if plan.show_identity else None
        with self._progress(scorer, night) as progress:
            score = replace(scorer.score(night, resolution=plan.resolution, progress=progress), lights=lights)
        with whole_folder(folder, origin) as unfinished:
            written = writing.result().write_night(unfinished, score, night, start, made_with, identity, position)
        line = score.headline + _agreement(written)
        return Outcome("scored", job.file, record, str(folder), line, score.warnings, lacks=_lacks(score))

    def _called(self, job: Job, file: str, origin: Origin) -> RecordName:
        """The name of a night: that of its file, or the one by which the call tells it from others of this name.

        What was scored under the file's name, when no other was given, stays there.
        """
        alone = RecordName.alone(file)
        if not job.record or holds(self._plan.out / alone.record, origin):
            return alone
        return replace(alone, record=job.record)

    @contextmanager
    def _progress(self, scorer: Scorer, night: PreparedRecording) -> Iterator[Callable[[int], object] | None]:
        """Counts epochs through encoders on a terminal."""
        total = night.n_epochs * scorer.passes(self._plan.resolution)
        with tqdm(
            total=total, desc=night.record, unit="epoch", leave=False, disable=None if self._plan.progress else True
        ) as bar:
            yield bar.update

    def _made_with(self, cohort: Cohort, scoring: Path | None) -> dict[str, Any]:
        """All that the files of a night follow from, beside the recording's bytes, in JSON types."""
        plan = self._plan
        return {
            "sleepfm": __version__,
            "models": self._digests,
            "cohort": cohort.name,
            "channels": plan.channels,
            "lights": [plan.lights_off, plan.lights_on],
            "resolution_s": plan.resolution,
            "precision": self._scorer.precisions,
            "position": plan.position,
            "show_identity": plan.show_identity,
            "scoring_sha256": None if scoring is None else _sha256(str(scoring)),
        }

    @cached_property
    def _digests(self) -> dict[str, str]:
        return self._scorer.digests


def _agreement(summary: dict[str, Any]) -> str:
    """How the stages agree with a human's, for the line of a night that one has scored."""
    kappa = summary.get("agreement", {}).get("stage", {}).get("kappa")
    return "" if kappa is None else f", κ {kappa:.2f} with the human stages"


def _lacks(score: NightScore) -> str:
    """What a night is without of which the models could say nothing, or nothing of its stages."""
    if (score.stages >= 0).any():
        return ""
    lacking = ["stages"] if "stage" in score.models else []
    lacking += ["events"] if not score.assessed and set(score.models) - {"stage"} else []
    return " and ".join(lacking)


@lru_cache(1)
def report_writer() -> Future[Any]:
    """The module that writes nights, :mod:`sleepfm.reports.night_files`. A thread imports it while the first recording is read,
    for what draws and makes tables takes a second or two.
    """
    threads = ThreadPoolExecutor(1, "imports")
    found = threads.submit(import_module, "sleepfm.reports.night_files")
    threads.shutdown(wait=False)
    return found


def is_done(folder: Path, made_with: dict[str, Any]) -> bool:
    """Whether ``folder`` holds, all of it and as it was written, a night that was made with the very same."""
    try:
        summary = read_json(folder / SUMMARY)
    except (OSError, ValueError):
        return False
    if not isinstance(summary, dict) or summary.get("made_with") != made_with:
        return False
    return not strangers(folder) and not missing(folder)


def choose_lights(recording: Recording, texts: Sequence[tuple[float, str]], off: str | None, on: str | None) -> Lights:
    """When lights went off and on: as stated, else as annotated, else by the rule.

    Raises:
        UsageError: a stated time that is none, or a clock time of a recording whose start is not known.
        RecordingError: lights on not after lights off, or a stated time outside of the recording.
    """
    noted = find_lights((onset, text) for onset, text in texts if 0 <= onset <= recording.duration)
    (off_s, off_from), (on_s, on_from) = (
        (_seconds(recording, option, text), BY_OPTION)
        if text is not None
        else (found, BY_ANNOTATION if found is not None else BY_RULE)
        for option, text, found in (("--lights-off", off, noted[0]), ("--lights-on", on, noted[1]))
    )
    lights = Lights(off_s, on_s, off_from, on_from)
    if lights.off is not None and lights.on is not None and lights.on <= lights.off:
        raise RecordingError(
            f"{recording.name}: lights on at {lights.on:g} s ({lights.on_from}), which is not after lights off at "
            f"{lights.off:g} s "
            f"({lights.off_from}); give both with --lights-off and --lights-on"
        )
    return lights


def parse_time(option: str, text: str) -> float | time:
    """Seconds from a recording's start (``+900``) or a time of day (``22:45``, ``22:45:30``). Raises :class:`UsageError`."""
    try:
        if text.startswith("+"):
            return float(text)
        return datetime.strptime(text, "%H:%M:%S" if text.count(":") == 2 else "%H:%M").time()
    except ValueError as error:
        raise UsageError(f"{option} {text}: write seconds from the start (+900) or a time of day (22:45 or 22:45:30)") from error


def _seconds(recording: Recording, option: str, text: str) -> float:
    stated = parse_time(option, text)
    if isinstance(stated, time):
        if recording.start is None:
            raise UsageError(f"{option} {text}: the start of {recording.name} is not known; write seconds from it (+900)")
        stated = (datetime.combine(recording.start.date(), stated) - recording.start).total_seconds() % _DAY
    if not 0 <= stated <= recording.duration:
        raise RecordingError(
            f"{recording.name}: {option} {text} is {stated:g} s after its start, but it is only {recording.duration:g} s "
            "long; give another time, or score this recording in a separate call"
        )
    return stated


def _check_channels(night: PreparedRecording, channels: dict[str, str]) -> None:
    """Raises :class:`MontageError` where a channel that was named by hand is not there: nothing else stands in for it."""
    for name, signal in channels.items():
        if name not in night.channels:
            why = night.provenance.get("missing", {}).get(name, "no usable signal")
            raise MontageError(f"{night.path}: --channel {name}={signal}: {why}; `sleepfm doctor` lists its signals")


def _origin(path: str) -> Origin:
    """What a scored night was made from: the bytes of its recording, since headers of different nights can be equal."""
    return Origin(KIND, _sha256(path), path)


def _sha256(path: str) -> str:
    try:
        return file_sha256(location(path))
    except OSError as error:
        raise RecordingError(f"{path}: cannot be read ({error})") from error
