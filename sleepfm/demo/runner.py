"""Runs commands in order, each once, with logs, relayed progress, time and memory."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sleepfm.demo.process_memory import PeakMemory
from sleepfm.errors import TrainingError, UsageError
from sleepfm.files import make_folder, read_json, write_json, writing
from sleepfm.lock import LOCK_FILE, only_writer
from sleepfm.signals.scorings.free_text import without_texts

# Lines that the launcher and its libraries print for themselves; they stay in the log.
NOISE = ("[20", "[W", "[I", "Setting ds_accelerator", "warnings.warn", "  warnings.warn", "/", "WARNING", "INFO")
RELAY_SECONDS = 2.0
JOURNAL_FILE = "demo.json"
_MARGIN = " " * 8
START_OVER = "make demo FRESH=1 sets it aside and starts over, OUT=FOLDER takes another folder"


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        refusals_ok: exit status 1 is accepted: some input refused, the rest done.
        texts_in_log: whether its log keeps texts that it quotes; else digests stand there.
    """

    name: str
    command: list[str]
    refusals_ok: bool = False
    texts_in_log: bool = True


@dataclass(frozen=True)
class Done:
    """What a finished step cost."""

    command: list[str]
    seconds: float
    peak_bytes: int


@dataclass
class Journal:
    """The finished steps of a demo folder, kept in ``demo.json`` beside what identifies its data and settings."""

    path: Path
    identity: str
    steps: dict[str, Done] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, identity: str, instead: str = START_OVER) -> Journal:
        """The journal in ``folder``, or a new one where there is nothing; nothing is written. ``instead`` tells what to do where
        it is another one's.

        Raises:
            UsageError: the folder holds a demo of other data or settings, or anything else.
        """
        path, stored = folder / JOURNAL_FILE, _stored(folder)
        if stored is not None and stored["identity"] == identity:
            return cls(path, identity, {name: Done(**done) for name, done in stored["steps"].items()})
        if stored is not None:
            raise UsageError(f"{folder}: contains a demo of other data or settings, which is kept; {instead}")
        is_new = not os.path.lexists(folder)
        if not is_new and (not folder.is_dir() or any(item.name != LOCK_FILE for item in folder.iterdir())):
            raise UsageError(f"{folder}: contains files that no demo wrote; give another folder (make demo OUT=FOLDER)")
        return cls(path, identity)

    def save(self) -> None:
        """Write ``demo.json`` atomically."""
        content = {"identity": self.identity, "steps": {name: asdict(done) for name, done in self.steps.items()}}
        write_json(self.path, content)


def _stored(folder: Path) -> dict[str, Any] | None:
    """The journal of the demo in ``folder``, or None where no demo has been."""
    try:
        stored = read_json(folder / JOURNAL_FILE)
    except (OSError, ValueError):
        return None
    is_journal = isinstance(stored, dict) and isinstance(stored.get("identity"), str) and isinstance(stored.get("steps"), dict)
    return stored if is_journal else None


def set_aside(folder: Path) -> None:
    """Move the demo in ``folder`` to the first free ``folder-N``; nothing is removed.

    Raises:
        BusyError: a demo is running there.
        UsageError: the folder was not made by a demo.
        StorageError: it cannot be moved.
    """
    if not os.path.lexists(folder):
        return
    if _stored(folder) is None:
        raise UsageError(f"{folder}: contains files that no demo wrote; give another folder (make demo OUT=FOLDER)")
    place = Path(os.path.abspath(folder))
    number = next(n for n in itertools.count(1) if not os.path.lexists(place.with_name(f"{place.name}-{n}")))
    target = place.with_name(f"{place.name}-{number}")
    with only_writer(folder), writing(target):
        place.rename(target)
    print(f"{folder}: the earlier demo is now in {target}", flush=True)


class Runner:
    """Runs the steps of one demo folder."""

    def __init__(self, folder: Path, journal: Journal, total: Callable[[], int]) -> None:
        """``total`` tells how many steps there are, as far as is known by then."""
        self._logs = folder / "logs"
        self._journal = journal
        # First: from here on the folder is a demo's.
        journal.save()
        make_folder(self._logs)
        self._total = total
        self._count = 0

    def run(self, step: Step) -> None:
        """Run ``step`` unless the journal holds it with the same command.

        Raises:
            TrainingError: the command failed; the message names its log and last line.
        """
        self._count += 1
        title = f"[{self._count:2d}/{self._total()}] {step.name}"
        done = self._journal.steps.get(step.name)
        if done is not None and done.command == step.command:
            print(f"{title}: done before, in {done.seconds:.0f} s", flush=True)
            return
        print(title, flush=True)
        log = self._logs / f"{self._count:02d}-{step.name}.log"
        started = time.monotonic()
        status, last_line, peak, shown = _run_logged(step, log)
        seconds = time.monotonic() - started
        # A refused input ends with status 1 too, but prints no error.
        refused = step.refusals_ok and status == 1 and not last_line.startswith("error: ")
        if status and not refused:
            raise TrainingError(f"{step.name} ended with status {status}: {last_line} (all it printed: {log})")
        self._journal.steps[step.name] = Done(step.command, round(seconds, 1), peak)
        self._journal.save()
        if last_line and last_line != shown:
            _relay(last_line)
        print(f"{_MARGIN}{seconds:.0f} s, peak memory {peak / 2**30:.1f} GiB", flush=True)


def _relay(text: str) -> None:
    """Print a line of a step below its title: whole, but on a terminal no longer than one row of it."""
    if sys.stdout.isatty():
        text = text[: max(shutil.get_terminal_size().columns - len(_MARGIN), 1)]
    print(f"{_MARGIN}{text}", flush=True)


def _run_logged(step: Step, log: Path) -> tuple[int, str, int, str]:
    """Run ``step`` with its output in ``log``; returns its status, its last line, its peak memory in bytes and the line that
    was relayed last.
    """
    last_line, error_line, shown, shown_at = "", "", "", time.monotonic()
    with log.open("w") as sink:
        process = subprocess.Popen(step.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        assert process.stdout is not None
        with PeakMemory(process.pid) as memory:
            for line in process.stdout:
                sink.write(line if step.texts_in_log else without_texts(line))
                # A progress bar redraws its line; the last drawing counts.
                text = line.rstrip().rsplit("\r", 1)[-1]
                if not text or text.startswith(NOISE):
                    continue
                last_line = text
                if text.startswith("error: "):
                    error_line = text
                if time.monotonic() - shown_at > RELAY_SECONDS and text != shown:
                    _relay(text)
                    shown, shown_at = text, time.monotonic()
            status = process.wait()
    return status, error_line or last_line, memory.peak, shown
