"""What a night costs in ``sleepfm score``: imports, reading, models and writing, peak memory, and how fast the arithmetic is.

    python benchmarks/scoring.py [--sizes tiny base] [--hours 8] [--json FILE]

The night is a synthetic one. The models have random weights, which cost what trained ones do: stages with a Mamba context, apnea
and hypopnea with event heads, all on one SynthSleepNet of four channels of that size (``tiny``, ``base``), registered in a store
of their own. Each size is scored in a process of its own by the command as users call it; seconds are split by clocks around
what the command calls. Imports are counted wherever they happen, also those that a part does when it is first needed.

The arithmetic is that of matrix products, convolutions and attention in one epoch through the encoder, times the epochs; its rate
is set beside that of one large matrix product in the same type, measured in the same process.
"""

from __future__ import annotations

import argparse
import builtins
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
from machine import describe
from rates import product_rate

SIZES = ("tiny", "base")
# Width of an event head, as in configs/downstream.
HIDDEN = {"tiny": 64, "base": 128}
PARTS = ("imports", "load", "read", "model", "write", "other")


class Clock:
    """Wall and processor seconds of each part of a process; time in a part that another one takes counts for the inner one."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = {}
        self.processor: dict[str, float] = {}
        self._parts = ["other"]
        self._since = time.monotonic(), time.process_time()

    def _switch(self) -> None:
        now = time.monotonic(), time.process_time()
        for seconds, begin, end in zip((self.wall, self.processor), self._since, now, strict=True):
            seconds[self._parts[-1]] = seconds.get(self._parts[-1], 0.0) + end - begin
        self._since = now

    def figures(self) -> dict[str, Any]:
        """Seconds of each part so far, of the whole process since the kernel started it, and its processor seconds."""
        self._switch()
        whole = time.time() - psutil.Process().create_time(), time.process_time()
        return {"seconds": self.wall | {"whole": whole[0]}, "processor_seconds": self.processor | {"whole": whole[1]}}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Within it, time is that of the part ``name``."""
        self._switch()
        self._parts.append(name)
        try:
            yield
        finally:
            self._switch()
            self._parts.pop()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function`` as the part ``name``."""

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return call

    def time_imports(self) -> None:
        """From now on every import is the part ``imports``."""
        plain = builtins.__import__

        def imported(name: str, *args: Any, **kwargs: Any) -> Any:
            if self._parts[-1] == "imports" or threading.current_thread() is not threading.main_thread():
                return plain(name, *args, **kwargs)
            with self.part("imports"):
                return plain(name, *args, **kwargs)

        builtins.__import__ = imported


@dataclass(frozen=True)
class Writer:
    """What writes nights, which a thread of the command's imports: what counts as importing is how long scoring waits for it."""

    clock: Clock
    module: Future[Any]

    def result(self) -> Any:
        """The module's function that writes, timed."""
        with self.clock.part("imports"):
            module = self.module.result()
        return SimpleNamespace(write_night=self.clock.timed("write", module.write_night))


def score(words: list[str], file: Path) -> int:
    """``sleepfm score WORDS`` in this process, timed; its figures go to ``file``."""
    clock = Clock()
    with clock.part("imports"):
        from sleepfm.cli import main
        from sleepfm.commands import score_night, score_pool
        from sleepfm.inference.scorer import Scorer
    clock.time_imports()
    setattr(Scorer, "load", clock.timed("load", Scorer.load))  # noqa: B010
    setattr(Scorer, "score", clock.timed("model", Scorer.score))  # noqa: B010
    setattr(score_night, "prepare_night", clock.timed("read", score_night.prepare_night))  # noqa: B010
    writer = score_night.report_writer
    setattr(score_night, "report_writer", lambda: Writer(clock, writer()))  # noqa: B010
    assert score_pool.NightScorer is score_night.NightScorer
    status = main(["score", *words])
    figures: dict[str, Any] = {"status": status} | clock.figures()
    figures["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    file.write_text(json.dumps(figures | {"product_flops_a_second": product_rate()}), encoding="utf-8")
    return int(status)


def make_models(size: str, folder: Path) -> tuple[str, float]:
    """Register a champion for each task in a store in ``folder``; its address, and the arithmetic of an epoch."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from sleepfm.config import read_yaml
    from sleepfm.constants import EPOCH_SAMPLES
    from sleepfm.files import sha256_file
    from sleepfm.models.build import build_model, model_config
    from sleepfm.models.context import ContextConfig
    from sleepfm.models.downstream import Downstream, DownstreamConfig
    from sleepfm.models.event_head import EventHeadConfig
    from sleepfm.models.usage import Usage
    from sleepfm.paths import config_root
    from sleepfm.registry import registry
    from sleepfm.registry.package import CONFIG, WEIGHTS, write_package
    from sleepfm.registry.promotion import CHAMPION
    from sleepfm.registry.store import client, experiment_id
    from sleepfm.tasks import TASKS

    torch.manual_seed(0)
    encoder = build_model(read_yaml(config_root() / "models" / f"synthsleepnet-{size}.yaml")["model"]).eval()
    encoder.drop_pretraining()
    epoch = torch.randn(1, len(encoder.channels), EPOCH_SAMPLES), torch.ones(1, len(encoder.channels), dtype=torch.bool)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        encoder.encode_frames(*epoch)
    folder.mkdir(parents=True)
    store = f"sqlite:///{folder / 'mlflow.db'}"
    mlflow = client(store, create=True)
    run = mlflow.create_run(experiment_id(mlflow, store, "benchmark")).info.run_id
    for task in (task for task in TASKS.values() if not task.optional):
        torch.manual_seed(1)
        two_ways = ContextConfig(kind="mamba", bidirectional=True)
        config = DownstreamConfig(
            task=task.name,
            classes=task.classes,
            encoder=model_config(encoder),
            context=ContextConfig(kind="none" if task.event else "mamba"),
            events=EventHeadConfig(hidden=HIDDEN[size], context=two_ways) if task.event else None,
        )
        usage = Usage(
            task=task.name,
            classes=task.classes,
            window=20,
            threshold=0.5 if task.kind == "binary" else None,
            event_threshold=0.5 if task.event else None,
            resolution_s=1 if task.event else 30,
        )
        package, model = folder / task.name, Downstream(config, encoder)
        write_package(package, model, {"model": model_config(model)} | usage.to_package(), "")
        digests = {"sha256": sha256_file(package / WEIGHTS), "sha256.config": sha256_file(package / CONFIG)}
        version = registry.register(task.registered_name, package, run, digests, {}, store=store)
        registry.name_version(task.registered_name, version, CHAMPION, store)
    return store, float(counter.get_total_flops())


def measure(size: str, night: Path, epochs: int, folder: Path) -> dict[str, Any]:
    """Figures of scoring ``night`` with models of ``size``."""
    made = folder / f"{size}.json"
    _run("--make", size, str(folder / size), str(made))
    store, flops = json.loads(made.read_text())
    file = folder / f"{size}-figures.json"
    _run("--score", str(file), str(night), "--out", str(folder / f"{size}-out"), "--store", store)
    figures: dict[str, Any] = json.loads(file.read_text())
    done = flops * epochs
    rate = done / figures["seconds"]["model"]
    share = {name: rate / peak for name, peak in figures["product_flops_a_second"].items()}
    return figures | {"flops_a_night": done, "flops_a_second": rate, "share_of_a_product": share}


def _run(*words: str) -> None:
    """This script in a process of its own, whose memory and imports are then nobody else's."""
    environment = {**os.environ, "DS_ACCELERATOR": "cpu"}
    done = subprocess.run([sys.executable, __file__, *words], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {done.returncode}:\n{done.stderr[-3000:]}")


def main() -> None:
    """Measure each size, print, and write."""
    if sys.argv[1:2] == ["--score"]:
        raise SystemExit(score(sys.argv[3:], Path(sys.argv[2])))
    if sys.argv[1:2] == ["--make"]:
        Path(sys.argv[4]).write_text(json.dumps(make_models(sys.argv[2], Path(sys.argv[3]))), encoding="utf-8")
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=SIZES)
    parser.add_argument("--hours", type=float, default=8.0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"hours": arguments.hours, "sizes": {}}
    with tempfile.TemporaryDirectory(prefix="scoring-") as name:
        from sleepfm.constants import EPOCH_SECONDS
        from sleepfm.synthetic.cohort import write_cohort

        folder = Path(name)
        (night,) = write_cohort(folder / "cohort", 1, arguments.hours, 1)
        for size in arguments.sizes:
            found = measure(size, night, round(arguments.hours * 3600 / EPOCH_SECONDS), folder)
            result["sizes"][size] = found
            seconds = found["seconds"]
            parts = ", ".join(f"{part} {seconds[part]:.1f}" for part in PARTS)
            print(f"{size}: {seconds['whole']:.1f} s ({parts}), {found['peak_bytes'] / 2**30:.2f} GiB", flush=True)
            shares = ", ".join(f"{share:.0%} of a product in {name}" for name, share in found["share_of_a_product"].items())
            done, rate = found["flops_a_night"] / 1e12, found["flops_a_second"] / 1e9
            print(f"  {done:.1f} TFLOP at {rate:.0f} GFLOP/s, {shares}", flush=True)
    result["machine"] = describe()
    print(result["machine"])
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
