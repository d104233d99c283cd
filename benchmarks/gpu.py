"""All that needs a CUDA device, in at most ten minutes: what ``make gpu-check`` calls.

    python benchmarks/gpu.py [--wheels FOLDER] [--only PART,...] [--reference CHECKOUT] [--minutes M] [--rehearse] [--json F]

For a machine with CUDA, Python 3.12, PyTorch, and nothing else but a folder of wheels that ``scripts/wheels.sh`` has filled.
Every part is a process of its own with its own time limit (``gpu_parts.py``) and tells each figure as soon as it has it: a part
that fails or takes too long keeps its rows, has its error beside them, and costs the others nothing. What is not there to be
measured (mamba-ssm, the released code) is skipped by name. F is written after every part. ``--rehearse`` is the same on the CPU
with tiny sizes and one thread: it shows that the parts run, and its figures say nothing. Status 1: a part had an error.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Only the standard library here: what cannot be imported is the finding of a part.
REPOSITORY = Path(__file__).resolve().parents[1]
PARTS_SCRIPT = Path(__file__).resolve().with_name("gpu_parts.py")
ERROR_CHARACTERS = 1500


@dataclass(frozen=True)
class Part:
    """A part of ``gpu_parts.py`` by its arguments, and the seconds that it may take."""

    name: str
    seconds: int
    arguments: tuple[str, ...] = ()


# In the order of what is wanted most: the last ones get what time is left. Limits add up to more than the time that there is,
# since a first compilation and a cold disk may take long, and not all of them do.
PARTS = (
    Part("machine", 40),
    Part("data", 80),
    Part("step-unimodal", 100, ("step", "unimodal")),
    Part("step-multimodal", 120, ("step", "multimodal")),
    Part("tests", 120),
    Part("mamba", 60),
    Part("resume", 120),
    Part("loader", 50),
    Part("processes", 40),
    Part("step-context", 60, ("step", "context")),
    Part("step-finetune", 80, ("step", "finetune")),
    Part("step-probe", 40, ("step", "probe")),
    Part("released", 90),
)


class Check:
    """Runs parts one after the other and keeps what they tell in a file."""

    def __init__(self, options: argparse.Namespace, scratch: Path) -> None:
        self._options, self._scratch = options, scratch
        self._ends = time.monotonic() + 60 * options.minutes
        self._began = time.monotonic()
        self._running: subprocess.Popen[bytes] | None = None
        self.found: dict[str, Any] = {"rehearsal": options.rehearse, "minutes": 0.0, "parts": {}}

    def install(self, wheels: Path) -> Path:
        """Unpack the wheels beside the checkout's own path; nothing that is installed is touched."""
        site = self._scratch / "site"
        words = ["-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile", "--target", str(site)]
        subprocess.run([sys.executable, *words, *map(str, sorted(wheels.glob("*.whl")))], check=True)
        return site

    def run(self, part: Part, environment: dict[str, str]) -> dict[str, Any]:
        """Rows of a part, its seconds, and its error, if it had one."""
        left = self._ends - time.monotonic()
        if left < 1:
            return {"seconds": 0.0, "rows": [], "error": f"not begun: the {self._options.minutes:g} minutes were over"}
        rows, said = self._scratch / f"{part.name}.jsonl", self._scratch / f"{part.name}.log"
        words = [sys.executable, str(PARTS_SCRIPT), *(part.arguments or (part.name,)), "--rows", str(rows)]
        words += ["--scratch", str(self._scratch), "--reference", self._options.reference]
        words += ["--rehearse"] if self._options.rehearse else []
        # A rehearsal may run on a busy processor.
        limit, began = min(part.seconds * (4 if self._options.rehearse else 1), left), time.monotonic()
        with said.open("wb") as log:
            self._running = subprocess.Popen(
                words, cwd=REPOSITORY, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                status: int | None = self._running.wait(limit)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                self.stop()
        result: dict[str, Any] = {"seconds": round(time.monotonic() - began, 1), "rows": read_rows(rows)}
        if status != 0:
            reason = f"took longer than {limit:.0f} s" if status is None else f"ended with status {status}"
            result["error"] = f"{reason}: {said.read_text(errors='replace')[-ERROR_CHARACTERS:].strip()}"
        return result

    def stop(self) -> None:
        """End the part that runs, with everything that it has started."""
        if self._running is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._running.pid, signal.SIGKILL)
            self._running.wait()
            self._running = None

    def keep(self, name: str, result: dict[str, Any]) -> None:
        """Add a part to what was found, show it, and write the file."""
        self.found["parts"][name] = result
        self.found["minutes"] = round((time.monotonic() - self._began) / 60, 2)
        for row in result["rows"]:
            figures = ", ".join(f"{key} {shown(value)}" for key, value in row.items() if key != "what")
            print(f"{name:<16} {row['what']}: {figures}")
        if "error" in result:
            print(f"{name:<16} ERROR {result['error'].splitlines()[0]} ... {result['error'].splitlines()[-1]}")
        sys.stdout.flush()
        if self._options.json:
            self._options.json.write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file of rows; none where a part ended before its first."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def shown(value: object) -> str:
    """A figure for the terminal."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def environment_of(rehearse: bool, scratch: Path, paths: list[Path]) -> dict[str, str]:
    """What parts run with: the checkout and the wheels before everything else, and nothing of the user's settings of MLflow."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    own = os.pathsep.join([*map(str, paths), *filter(None, [os.environ.get("PYTHONPATH")])])
    kept |= {"PYTHONPATH": own, "DS_ACCELERATOR": "cpu" if rehearse else "cuda", "PYTHONUNBUFFERED": "1"}
    kept |= {"MLFLOW_TRACKING_URI": f"sqlite:///{scratch / 'mlflow.db'}", "SLEEPFM_CACHE": str(scratch / "cache")}
    return kept | ({"OMP_NUM_THREADS": "1"} if rehearse else {})


def main() -> int:
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path, metavar="FOLDER", help="wheels to unpack first, of scripts/wheels.sh")
    parser.add_argument("--only", default="", metavar="PART,...", help=", ".join(names))
    parser.add_argument("--reference", default="", metavar="CHECKOUT", help="of the released code, to run beside ours")
    parser.add_argument("--minutes", type=float, default=9.5, help="after which nothing more is begun or runs on (%(default)s)")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with tiny sizes and one thread")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write what was found there")
    options = parser.parse_args()
    chosen = [word for word in options.only.split(",") if word] or names
    if unknown := sorted(set(chosen) - set(names)):
        parser.error(f"--only {', '.join(unknown)}: no such part; there are {', '.join(names)}")
    # So that what runs is ended whatever ends this.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="gpu-check-", ignore_cleanup_errors=True) as folder:
        check = Check(options, Path(folder))
        paths = [REPOSITORY, *([check.install(options.wheels)] if options.wheels else [])]
        environment = environment_of(options.rehearse, Path(folder), paths)
        for part in (part for part in PARTS if part.name in chosen):
            check.keep(part.name, check.run(part, environment))
    failed = [name for name, result in check.found["parts"].items() if "error" in result]
    print(f"{check.found['minutes']:g} minutes; parts with an error: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
