"""One training job from its command line to a registered model; ``launch/*.py`` only say which stage."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from sleepfm import registry
from sleepfm.config import load_config, to_dict, to_yaml
from sleepfm.errors import RegistryError
from sleepfm.package import write_package
from sleepfm.training import folder
from sleepfm.training.config import RunConfig
from sleepfm.training.distributed import World, exit_ranked, on_main, start
from sleepfm.training.engine import Trained, total_steps, train
from sleepfm.training.feed import Shares
from sleepfm.training.files import write_json
from sleepfm.training.flops import item_flops
from sleepfm.training.folder import Resume
from sleepfm.training.preemption import PREEMPTED_STATUS
from sleepfm.training.recorder import Recorder, common_tags
from sleepfm.training.sizing import Size
from sleepfm.training.stage import Stage
from sleepfm.training.tracking import Tracker, undelivered

ConfigT = TypeVar("ConfigT", bound=RunConfig)

# Longer than the longest validation: ranks wait for rank 0 in a collective meanwhile.
_COLLECTIVE_TIMEOUT_SECONDS = 1800.0


@dataclass
class Context:
    """What a stage may need of its job while it is built."""

    world: World
    store: str
    resume: Resume
    config: RunConfig
    started_from: dict[str, str] = dataclasses.field(default_factory=dict)

    def pull(self, address: str) -> registry.Resolved:
        """The registered package at ``address``; rank 0 asks the registry, every rank calls this.

        A resumed run gets the version that it started from, even if the alias has moved since.

        Raises:
            RegistryError: see :func:`sleepfm.registry.resolve`.
        """

        def ask() -> dict[str, Any]:
            known = {} if self.resume == "never" else folder.sources(self.config)
            found = registry.resolve(known.get(address, address), self.store)
            return dataclasses.asdict(found) | {"path": str(found.path.resolve())}

        answer = on_main(self.world, ask)
        found = registry.Resolved(**(answer | {"path": Path(answer["path"])}))
        self.started_from[address] = found.uri
        return found


Build = Callable[[ConfigT, Context], Stage]
DigestOf = Callable[[ConfigT], str]


def run(schema: type[ConfigT], build: Build[ConfigT], dataset_digest: DigestOf[ConfigT], description: str) -> NoReturn:
    """Parse the command line, train, package, register, and end the process.

    Exit status: 0 done (or done before), 1 refused, 2 wrong configuration, 75 left early on SIGTERM or
    SIGUSR1 with everything saved: start the same command again.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("config", help="YAML file, such as configs/pretrain/eeg-tiny.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example train.steps=100")
    parser.add_argument("--resume", choices=("auto", "never", "must"), default="auto")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved configuration and sizes")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_intermixed_args()

    def command() -> int:
        world = World.from_environment()
        config = load_config(schema, arguments.config, arguments.overrides)
        return _run(config, build, dataset_digest(config), world, arguments.resume, arguments.dry_run)

    exit_ranked(command)


def _run(config: ConfigT, build: Build[ConfigT], dataset_digest: str, world: World, resume: Resume, dry_run: bool) -> int:
    store = registry.store_uri(config.tracking.uri)
    Shares.of(config.train, world)
    if not dry_run:
        done = folder.check(config, dataset_digest, resume)
        if done is not None:
            return _already_done(config, done, store) if world.is_main else 0
    start(world, _COLLECTIVE_TIMEOUT_SECONDS)
    context = Context(world, store, resume, config)
    if dry_run:
        stage = build(config, context)
        flops = item_flops(stage, world)
        if world.is_main:
            print(to_yaml(config))
            print(f"steps: {total_steps(config, stage)}, items in a pass: {len(stage.stream)}")
            print(f"arithmetic: {flops / 1e9:.2f} GFLOP an item, {flops * config.train.global_batch / 1e12:.3f} TFLOP a step")
            print(Size.of(stage.module).describe(world.size))
        return 0
    if resume == "never":
        on_main(world, lambda: folder.clear(config))
    stage = build(config, context)
    on_main(world, lambda: folder.begin(config, dataset_digest, context.started_from))
    flops = item_flops(stage, world)
    recorder = Recorder(stage, config, store, world, flops) if world.is_main else None
    report = recorder.report if recorder else _ignore
    try:
        trained = train(stage, config, world, resume != "never", report)
        outcome = on_main(world, lambda: _conclude(stage, config, store, recorder, trained))
    finally:
        if recorder is not None:
            recorder.close()
    return 0 if outcome["finished"] else PREEMPTED_STATUS


def _ignore(step: int, row: dict[str, Any]) -> None:
    """Only rank 0 reports."""


def _conclude(stage: Stage, config: RunConfig, store: str, recorder: Recorder | None, trained: Trained) -> dict[str, Any]:
    """Rank 0, after training: package the best weights, register them, and mark the run as done."""
    assert recorder is not None
    output = Path(config.train.output)
    if not trained.finished:
        recorder.finished("KILLED")
        print(
            f"{stage.name}: asked to leave; saved at step {trained.step}, the same command continues",
            flush=True,
        )
        return {"finished": False}
    module = trained.module.eval()
    export = stage.export(module, output)
    metrics = trained.best.figures | export.metrics
    recorder.tracker.log(trained.step, export.metrics)
    training = {
        "stage": stage.name,
        "steps": trained.step,
        "best_step": trained.best.step,
        "selected_by": {"metric": config.registry.metric, "mode": config.registry.mode},
        "metrics": metrics,
        "dataset_digest": stage.dataset_digest,
        "parents": list(stage.parents),
        "config": to_dict(config),
    }
    tags = common_tags(stage, config) | {"selected_by": config.registry.metric} | export.tags
    tags = write_package(output / "package", module, export.config | {"training": training}, export.card, tags)
    result = {
        "finished": True,
        "name": config.registry.name,
        "steps": trained.step,
        "best_step": trained.best.step,
        "metrics": metrics,
        "tags": tags,
        "parents": list(stage.parents),
        "seconds": round(trained.seconds, 1),
    }
    # From here on the same command does not train again.
    write_json(output / "result.json", result)
    recorder.finished("FINISHED")
    try:
        result |= _register(config, result, recorder.tracker.wait_for_run(), store)
    except RegistryError as error:
        raise RegistryError(
            f"{error}; trained, and the package is in {output / 'package'}: start the same command again when the store "
            "answers, and it is registered without training"
        ) from error
    write_json(output / "result.json", result)
    print(_summary(stage.name, config, result), flush=True)
    return result


def _register(config: RunConfig, result: dict[str, Any], run_id: str, store: str) -> dict[str, Any]:
    name, settings = config.registry.name, config.registry
    package = Path(config.train.output) / "package"
    version = registry.register(name, package, run_id, result["tags"], result["metrics"], result["parents"], store)
    promoted = registry.promote(name, version, settings.metric, settings.mode, settings.alias, store)
    return {"version": version, "promoted": promoted, "run_id": run_id}


def _already_done(config: RunConfig, done: dict[str, Any], store: str) -> int:
    """Say so; register and deliver what could not be, or what a registry that has been lost held."""
    output = Path(config.train.output)
    if _is_registered(done, store) and not undelivered(output):
        label = f"{done['name']}:{done['version']}"
        print(f"{output}: trained before ({done['steps']} steps), registered as {label}; not repeated")
        return 0
    tracker = Tracker(output, store, config.tracking.experiment, done["tags"]["stage"], to_dict(config), done["tags"])
    try:
        done |= _register(config, done, tracker.wait_for_run(), store)
    finally:
        warning = tracker.close()
    write_json(output / "result.json", done)
    if warning:
        raise RegistryError(warning)
    print(f"{output}: already trained; registered as {done['name']}:{done['version']}")
    return 0


def _is_registered(done: dict[str, Any], store: str) -> bool:
    if "version" not in done:
        return False
    try:
        held = registry.resolve(f"models:/{done['name']}/{done['version']}", store)
    except RegistryError:
        return False
    return held.tags.get("sha256") == done["tags"]["sha256"]


def _summary(name: str, config: RunConfig, result: dict[str, Any]) -> str:
    metric = config.registry.metric
    value = result["metrics"][metric]
    holder = f"now {config.registry.alias}" if result["promoted"] else f"{config.registry.alias} stays"
    return (
        f"{name}: {result['steps']} steps in {result['seconds']:.0f} s, best {metric} {value:.4f} at step "
        f"{result['best_step']}; registered {result['name']}:{result['version']} ({holder})"
    )
