"""Runs commands in order, each once, with logs, relayed progress, time and memory."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sleepfm.demo.process_memory import PeakMemory
from sleepfm.errors import TrainingError
from sleepfm.files import make_folder, read_json, write_json

# Lines that the launcher and its libraries print for themselves; they stay in the log.
NOISE = ("[20", "[W", "[I", "Setting ds_accelerator", "warnings.warn", "  warnings.warn", "/", "WARNING", "INFO")
RELAY_SECONDS = 2.0


@dataclass(frozen=True)
class Step:
    """One command. ``refusals_ok`` accepts exit status 1: some input refused, the rest done."""

    name: str
    command: list[str]
    refusals_ok: bool = False


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
    def open(cls, folder: Path, identity: str) -> Journal:
        """Continue the journal in ``folder``; one of other data or settings is removed with all it describes."""
        path = folder / "demo.json"
        stored = read_json(path)
        if stored is not None:
            if stored["identity"] == identity:
                return cls(path, identity, {name: Done(**done) for name, done in stored["steps"].items()})
            print(f"{folder}: made from other data or settings; starting over", flush=True)
            shutil.rmtree(folder)
        make_folder(folder)
        journal = cls(path, identity)
        journal.save()
        return journal

    def save(self) -> None:
        """Write ``demo.json`` atomically."""
        content = {"identity": self.identity, "steps": {name: asdict(done) for name, done in self.steps.items()}}
        write_json(self.path, content)


class Runner:
    """Runs the steps of one demo folder."""

    def __init__(self, folder: Path, journal: Journal, total: int) -> None:
        self._logs = folder / "logs"
        self._logs.mkdir(exist_ok=True)
        self._journal = journal
        self._total = total
        self._count = 0

    def run(self, step: Step) -> None:
        """Run ``step`` unless the journal holds it with the same command.

        Raises:
            TrainingError: the command failed; the message names its log and last line.
        """
        self._count += 1
        title = f"[{self._count:2d}/{self._total}] {step.name}"
        done = self._journal.steps.get(step.name)
        if done is not None and done.command == step.command:
            print(f"{title}: done before, in {done.seconds:.0f} s", flush=True)
            return
        print(title, flush=True)
        log = self._logs / f"{self._count:02d}-{step.name}.log"
        started = time.monotonic()
        status, last_line, peak = _run_logged(step.command, log)
        seconds = time.monotonic() - started
        # A refused input ends with status 1 too, but prints no error.
        refused = step.refusals_ok and status == 1 and not last_line.startswith("error: ")
        if status and not refused:
            raise TrainingError(f"{step.name} ended with status {status}: {last_line} (all it printed: {log})")
        self._journal.steps[step.name] = Done(step.command, round(seconds, 1), peak)
        self._journal.save()
        print(f"        {last_line[:150]}", flush=True)
        print(f"        {seconds:.0f} s, peak memory {peak / 2**30:.1f} GiB", flush=True)


def _run_logged(command: Sequence[str], log: Path) -> tuple[int, str, int]:
    """Run ``command`` with its output in ``log``; returns its status, its last line and its peak memory in bytes."""
    last_line, error_line, shown_at = "", "", time.monotonic()
    with log.open("w") as sink:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        assert process.stdout is not None
        with PeakMemory(process.pid) as memory:
            for line in process.stdout:
                sink.write(line)
                # A progress bar redraws its line; the last drawing counts.
                text = line.rstrip().rsplit("\r", 1)[-1]
                if not text or text.startswith(NOISE):
                    continue
                last_line = text
                if text.startswith("error: "):
                    error_line = text
                if time.monotonic() - shown_at > RELAY_SECONDS:
                    print(f"        {text[:150]}", flush=True)
                    shown_at = time.monotonic()
            status = process.wait()
    return status, error_line or last_line, memory.peak
