"""``python -m sleepfm.demo``: what ``make demo`` calls, in a checkout or with an installed package."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from shards.build_config import load_build_config
from sleepfm.config import digest, load_config, to_dict
from sleepfm.console import accept_every_character, exit_with
from sleepfm.demo.census import take_census
from sleepfm.demo.runner import JOURNAL_FILE, Journal, Runner, set_aside
from sleepfm.demo.steps import EVENTS, MODALITIES, DemoConfig, Plan
from sleepfm.errors import UsageError
from sleepfm.extras import require
from sleepfm.lock import only_writer
from sleepfm.signals.cohorts.catalogue import AUTO, all_cohorts, cohort_names, load_rules
from sleepfm.signals.cohorts.cohort import Cohort, rules_digest
from sleepfm.signals.files import local_path


def main() -> int:
    """Parse the arguments and run every step."""
    accept_every_character()
    arguments = parser().parse_args()
    return exit_with(lambda: run(arguments))


def parser() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(prog="python -m sleepfm.demo", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="seed of the synthetic cohort (default: %(default)s)")
    parser.add_argument("--data", type=Path, help="folder of your own recordings, instead of a synthetic cohort")
    parser.add_argument("--cohort", help="rules for --data: a name, a YAML file, or a folder of them (default: auto)")
    parser.add_argument("--salt", help="any word; another word draws the people of each split again")
    parser.add_argument(
        "--config", default="demo/default.yaml", help="settings: a file, or the name of a shipped one (default: %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="folder for everything that is made (default: %(default)s)"
    )
    parser.add_argument("--fresh", action="store_true", help="rename the folder of an earlier demo and start over")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="change a key of the settings, for example processes=1")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Make the cohort, the shards, the models, the scored night and the report."""
    require("ray", "deepspeed")
    if arguments.data is not None and not arguments.data.is_dir():
        raise UsageError(f"--data {arguments.data}: no such folder")
    local_path(arguments.out, "--out")
    config = load_config(DemoConfig, arguments.config, arguments.overrides)
    if arguments.salt is not None:
        # Quoted, so that a number stays the text that it is to be.
        config = config.model_copy(update={"build": [*config.build, f"split.salt={json.dumps(arguments.salt)}"]})
    data = arguments.data.resolve() if arguments.data else None
    cohort, rules = _cohort(arguments)
    seed = arguments.seed
    identity = digest({"config": to_dict(config), "seed": seed, "data": str(data) if data else None} | rules)
    plan = Plan(config, arguments.out, seed, data, cohort)
    if data is not None and (arguments.fresh or not (arguments.out / JOURNAL_FILE).exists()):
        _look_at(data, plan)
    if arguments.fresh:
        set_aside(arguments.out)
    journal = Journal.open(arguments.out, identity)
    with only_writer(arguments.out):
        return _run(plan, journal)


def _cohort(arguments: argparse.Namespace) -> tuple[str, dict[str, object]]:
    """What ``--cohort`` says, a file or folder by its whole path, and what of it decides the result."""
    if arguments.cohort is None:
        return AUTO, {}
    if arguments.data is None:
        raise UsageError("--cohort is for your own recordings; give their folder with --data")
    rules = load_rules(arguments.cohort)
    cohorts = (rules,) if isinstance(rules, Cohort) else (rules or all_cohorts()).all()
    is_name = arguments.cohort == AUTO or arguments.cohort in cohort_names()
    cohort = arguments.cohort if is_name or not Path(arguments.cohort).exists() else str(Path(arguments.cohort).resolve())
    return cohort, {"cohort": {each.name: rules_digest(each) for each in cohorts}}


def _run(plan: Plan, journal: Journal) -> int:
    started = time.monotonic()
    runner = Runner(plan.folder, journal, lambda: plan.n_steps)
    if plan.data is None:
        runner.run(plan.synth())
    runner.run(plan.build())
    for modality in [*MODALITIES, *(["RESP"] if plan.breathes else [])]:
        runner.run(plan.pretrain(modality))
    runner.run(plan.multimodal())
    runner.run(plan.probe("stage"))
    for task in EVENTS:
        runner.run(plan.events(task))
    runner.run(plan.finetune())
    runner.run(plan.score())

    from sleepfm.demo.summary import print_table, write_report, write_summary

    page = write_report(plan, journal)
    write_summary(plan, journal, time.monotonic() - started)
    print_table(plan, journal)
    print(f"report: {page}")
    return 0


def _look_at(data: Path, plan: Plan) -> None:
    """Say what the splits of the user's recordings will be. Raises :class:`DatasetError` where they are not enough."""
    census = take_census(data, load_build_config(None, [*plan.config.build, f"cohort={plan.cohort}"]))
    print("\n".join(census.lines()), flush=True)
    census.check(MODALITIES)


if __name__ == "__main__":
    sys.exit(main())
