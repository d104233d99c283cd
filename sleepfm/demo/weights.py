"""``python -m sleepfm.demo.weights``: what ``make weights`` calls. It trains the built-in scorer on synthetic nights.

The steps are those of the demo with configurations of their own (``configs/synthetic/weights.yaml``): nights that vary more than
people do, straight into shards; the NeuroNets of EEG and of breathing, and on them a model for each task.
The models are then gathered into a folder as an installation has it (:mod:`sleepfm.builtin`), and judged on people of
other ranges (``configs/synthetic/held-out.yaml``).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from sleepfm import builtin
from sleepfm.config import Config, digest, load_config, to_dict
from sleepfm.console import accept_every_character, exit_with
from sleepfm.demo.runner import Journal, Runner, Step
from sleepfm.demo.steps import BIN, DemoConfig, Plan
from sleepfm.errors import ConfigError, ModelError
from sleepfm.extras import require
from sleepfm.files import make_folder, read_json, write_json
from sleepfm.lock import only_writer
from sleepfm.signals.files import local_path
from sleepfm.version import __version__

MOST_BYTES = 20_000_000
# Stages and arousals are seen in the EEG, apneas and hypopneas in flow and belts.
ENCODERS = ("EEG", "RESP")
EVENTS = {"apnea": "resp", "hypopnea": "resp", "arousal": "eeg"}
ALL_TEST = ["split.pretrain=0", "split.label=0", "split.val=0", "split.test=1"]
TRAINED_ON = "synthetic nights alone, no recording of a person"


class VariedCohort(Config):
    """People of a file of ``configs/synthetic``, and how long their nights are."""

    config: str
    subjects: int = Field(ge=1)
    hours: float = Field(gt=0)


class WeightsConfig(Config):
    """Settings: overrides (``key=value``) for every kind of job, on top of its own configuration file."""

    example = "synthetic/weights.yaml"
    cohort: VariedCohort
    held_out: VariedCohort
    workers: int = Field(2, ge=1, description="processes that make nights and shards")
    processes: int = Field(1, ge=1, description="processes that train")
    build: list[str] = []
    unimodal: list[str] = []
    events: list[str] = []
    finetune: list[str] = []


class WeightsPlan(Plan):
    """The commands in ``folder``, in the order in which :func:`run` has them."""

    size = "small"

    def __init__(self, config: WeightsConfig, folder: Path, seed: int) -> None:
        jobs = to_dict(config) | {"cohort": {"subjects": config.cohort.subjects, "hours": config.cohort.hours}}
        del jobs["held_out"], jobs["workers"]
        super().__init__(DemoConfig(**jobs), folder, seed, None)
        self.varied, self.held_out, self.workers = config.cohort, config.held_out, config.workers
        self.unseen = folder / "held-out" / "shards"

    @property
    def tasks(self) -> dict[str, str]:
        """The job that makes the model of each task."""
        return {"stage": "finetune-stage", **{task: f"events-{task}" for task in EVENTS}}

    @property
    def n_steps(self) -> int:
        """Commands in all."""
        return 1 + len(ENCODERS) + len(self.tasks) + 1

    def synth(self) -> Step:
        """Make the cohort and its shards; recordings are removed as soon as they are in them."""
        return self._people("synth", self.varied, self.seed, self.folder / "recordings", self.shards, self.config.build)

    def synth_held_out(self) -> Step:
        """Make the people on whom the models are judged: of another seed as well as of other ranges."""
        return self._people(
            "synth-held-out", self.held_out, self.seed + 1000, self.unseen.with_name("recordings"), self.unseen, ALL_TEST
        )

    def _people(self, name: str, cohort: VariedCohort, seed: int, recordings: Path, shards: Path, build: Sequence[str]) -> Step:
        size = ["--subjects", str(cohort.subjects), "--hours", f"{cohort.hours:g}", "--seed", str(seed)]
        options = ["--shards", str(shards), *(word for item in build for word in ("--build", item))]
        workers = ["--config", cohort.config, "--workers", str(self.workers)]
        return Step(name, [str(BIN / "sleepfm"), "synth", str(recordings), *size, *workers, *options])

    def finetune(self) -> Step:
        """Fine-tune the NeuroNet of EEG for stages."""
        encoder = f"encoder={self.address('pretrain-eeg')}"
        return self._train("finetune-stage", "finetune", "downstream/finetune-stage-small", [encoder, *self.config.finetune])

    def events(self, task: str) -> Step:
        """Train an event head on the frozen network that sees such events."""
        encoder = f"encoder={self.address(f'pretrain-{EVENTS[task]}')}"
        overrides = [encoder, self.cached(EVENTS[task]), *self.config.events]
        return self._train(f"events-{task}", "finetune", f"downstream/events-{task}-small", overrides)


def main() -> int:
    """Parse the arguments and run every step."""
    accept_every_character()
    parser = argparse.ArgumentParser(prog="python -m sleepfm.demo.weights", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="seed of the synthetic cohort (default: %(default)s)")
    parser.add_argument(
        "--config", default="synthetic/weights.yaml", help="settings: a file, or the name of a shipped one (default: %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/weights"), help="folder for everything that is made (default: %(default)s)"
    )
    parser.add_argument(
        "--people",
        type=Path,
        metavar="FILE",
        help="a result of benchmarks/people.py of these models: told with them from then on",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="change a key of the settings")
    arguments = parser.parse_args()
    return exit_with(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> int:
    """Make the nights, the models and the folder of the built-in scorer."""
    require("ray", "deepspeed")
    out = local_path(arguments.out, "--out")
    config = load_config(WeightsConfig, arguments.config, arguments.overrides)
    plan = WeightsPlan(config, out, arguments.seed)
    people = None if arguments.people is None else people_result(arguments.people)
    # A registry of its own: what is trained here is no champion among the user's models.
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{out.resolve() / 'mlflow.db'}"
    identity = digest({"config": to_dict(config), "seed": arguments.seed})
    journal = Journal.open(out, identity, "give another folder with --out")
    started = time.monotonic()
    with only_writer(out):
        runner = Runner(out, journal, lambda: plan.n_steps)
        runner.run(plan.synth())
        for modality in ENCODERS:
            runner.run(plan.pretrain(modality))
        for task in EVENTS:
            runner.run(plan.events(task))
        runner.run(plan.finetune())
        runner.run(plan.synth_held_out())
        folder = gather(plan, people)
    print(
        f"{folder}: {size_of(folder) / 1e6:.1f} MB in {(time.monotonic() - started) / 3600:.1f} h; copied to {builtin.WEIGHTS} "
        "they are the built-in models of a wheel that is made there"
    )
    return 0


def gather(plan: WeightsPlan, people: dict[str, Any] | None = None) -> Path:
    """The models of every task in ``OUT/builtin``, as :mod:`sleepfm.builtin` reads them; returns the folder. ``people`` is
    what :func:`people_result` gives.

    Raises:
        ModelError: together they are larger than a wheel is to carry.
    """
    from sleepfm.demo.weights_figures import event_figures, stage_figures
    from sleepfm.registry.package import CARD, CONFIG, WEIGHTS, link_or_copy
    from sleepfm.registry.registry import resolve

    folder = plan.folder / "builtin"
    tasks: dict[str, Any] = {}
    for task, job in plan.tasks.items():
        source = resolve(plan.address(job))
        make_folder(folder / task)
        for name in (CONFIG, WEIGHTS, CARD):
            if not (folder / task / name).exists():
                link_or_copy(source.path / name, folder / task / name)
        figures = (stage_figures if task == "stage" else event_figures)(folder / task, plan.unseen)
        tasks[task] = {
            "sha256": source.tags.get("sha256", ""),
            "dataset_digest": source.tags.get("dataset_digest", ""),
            "held_out": figures,
        }
    if (total := size_of(folder)) > MOST_BYTES:
        raise ModelError(f"{folder}: {total / 1e6:.1f} MB, more than the {MOST_BYTES / 1e6:.0f} MB that a wheel may carry")
    about = {
        "trained_on": TRAINED_ON,
        "measured_on": measured_on(tasks["stage"]["held_out"], people),
        "seed": plan.seed,
        "subjects": plan.varied.subjects,
        "hours": plan.varied.hours,
        "version": __version__,
        "tasks": tasks,
    }
    write_json(folder / builtin.ABOUT, about)
    return folder


def people_result(path: Path) -> dict[str, Any]:
    """The figures of stages in a result of ``benchmarks/people.py``.

    Raises:
        ConfigError: there is no such file, or it is no such result.
    """
    try:
        found = read_json(path)
    except ValueError as error:
        raise ConfigError(f"--people {path}: is not JSON") from error
    if found is None:
        raise ConfigError(f"--people {path}: does not exist")
    figures = found.get("ours") if isinstance(found, dict) else None
    if not isinstance(figures, dict) or not {"epochs", "kappa"} <= figures.keys():
        raise ConfigError(f"--people {path}: is no result of benchmarks/people.py --json")
    return figures


def measured_on(held_out: dict[str, Any], people: dict[str, Any] | None) -> str:
    """What the models were measured on, and how well they told stages there."""
    told = f"{held_out['people']} synthetic people of other ranges (stages: kappa {held_out['kappa']['value']:.2f})"
    if people is None:
        return told
    kappa = people["kappa"]["value"]
    return f"{told} and {people['epochs']} epochs of real people from one EEG channel (stages: kappa {kappa:.2f})"


def size_of(folder: Path) -> int:
    """Bytes of the weights below ``folder``."""
    return sum(path.stat().st_size for path in folder.glob("*/*.safetensors"))


if __name__ == "__main__":
    sys.exit(main())
