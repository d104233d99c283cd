"""One training job from its command line to a registered model; ``launch/*.py`` only say which stage."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from sleepfm.command_line import positive
from sleepfm.config import load_config, to_dict, to_yaml
from sleepfm.console import SaidOnce, accept_every_character
from sleepfm.data.mixed_stream import follow
from sleepfm.data.report import report_of
from sleepfm.errors import RegistryError, UsageError
from sleepfm.extras import require
from sleepfm.lock import only_writer
from sleepfm.models.device import set_tf32
from sleepfm.registry import registry
from sleepfm.registry.artifacts import seconds_for
from sleepfm.registry.store import store_uri
from sleepfm.training import branch, compute_dtype
from sleepfm.training.engine import Trained, total_steps, train
from sleepfm.training.export import Exporter, describe, register
from sleepfm.training.folder import Resume, RunFolder
from sleepfm.training.job_options import add_job_options
from sleepfm.training.mending import mend
from sleepfm.training.observer import Observer, Observers
from sleepfm.training.preflight.checks import Preflight
from sleepfm.training.preflight.report import describe as describe_plan
from sleepfm.training.ranks.distributed import World, exit_ranked, on_every_node, on_main, start
from sleepfm.training.ranks.joining import PREDECESSOR_SECONDS
from sleepfm.training.ranks.lost_output import outlive_lost_output
from sleepfm.training.ranks.preemption import PREEMPTED_STATUS, leave_at_once, leave_with_launcher
from sleepfm.training.ranks.shared_work import SharedWork
from sleepfm.training.ranks.watchdog import Watchdog
from sleepfm.training.run_config import RunConfig
from sleepfm.training.seen_people import keep_people
from sleepfm.training.stage import Export, Stage
from sleepfm.training.state import checkpoint
from sleepfm.training.state.checkpoint import Saved
from sleepfm.training.tracking.flops import item_flops
from sleepfm.training.tracking.goodput import Goodput
from sleepfm.training.tracking.profile import Profiler
from sleepfm.training.tracking.recorder import Recorder
from sleepfm.training.tracking.step_time import GPUS_A_NODE
from sleepfm.training.tracking.tracker import Tracker, undelivered
from sleepfm.wording import counted

ConfigT = TypeVar("ConfigT", bound=RunConfig)

# The watchdog ends a job in which nothing moves, and knows what moves: no collective is to give up before.
_COLLECTIVE_TIMEOUT_SECONDS = 30 * 86400.0


@dataclass
class Context:
    """What a stage may need of its job while it is built."""

    world: World
    store: str
    resume: Resume
    config: RunConfig
    started_from: dict[str, str] = dataclasses.field(default_factory=dict)
    observer: Observer = dataclasses.field(default_factory=Observer)
    on_paper: bool = False
    """Whether the job is only tried (``--dry-run``): shapes count, and nothing that takes long is computed or kept."""

    @property
    def work(self) -> SharedWork:
        """What all ranks divide while the stage is built, and to evaluate what it exports."""
        return SharedWork(self.world, self.config.deepspeed.compute_dtype, self.observer)

    def pull(self, address: str) -> registry.Resolved:
        """The package at ``address``, on this node. Rank 0 asks the registry what it is, every node fetches it once.

        Every rank calls this. A resumed run gets the version that it started from, even if the alias has moved since.

        Raises:
            SleepFMError: see :func:`sleepfm.registry.registry.resolve`; with the host's name where one cannot fetch.
        """

        def ask() -> dict[str, Any]:
            known = {} if self.resume == "never" else RunFolder(self.config.train.output).sources()
            return dataclasses.asdict(registry.look_up(known.get(address, address), self.store))

        self.observer.at(f"fetching {address}", patient=True)
        entry = registry.Entry(**on_main(self.world, ask))
        size = entry.tags.get("parameters", "")
        self.observer.goes_on(still_s=seconds_for(4.0 * int(size) if size.isdigit() else 0.0))
        found = on_every_node(self.world, lambda: registry.fetch(entry))
        found = dataclasses.replace(found, path=found.path.resolve())
        self.started_from[address] = found.permanent
        if self.world.is_main and found.name:
            digest = found.tags.get("dataset_digest", "unknown")
            count = f"{int(size):,}" if size.isdigit() else "an unknown number of"
            print(f"{address}: version {found.version}, {count} parameters, trained on data set {digest[:12]}", flush=True)
        return found


Build = Callable[[ConfigT, Context], Stage]

# Whom rank 0 tells of a run beside the recorder and the exporter, made when the run's folder is: another tracker is a class and a
# line here.
TRACKERS: list[Callable[[Stage, RunConfig], Observer]] = []
DigestOf = Callable[[ConfigT], str]


def run(schema: type[ConfigT], build: Build[ConfigT], dataset_digest: DigestOf[ConfigT], description: str) -> NoReturn:
    """Parse the command line, train, package, register, and end the process.

    Exit status: 0 done (or done before), 1 refused, 2 wrong configuration, 69 another process of the job is lost, 75 left early,
    asked by a signal, with everything saved: after these two start the same command again.
    """
    accept_every_character()
    leave_at_once()
    leave_with_launcher()
    outlive_lost_output()
    parser = argparse.ArgumentParser(description=description.replace("``", "`"))
    parser.add_argument("config", metavar="CONFIG", help="YAML file, for example configs/pretrain/eeg-tiny.yaml")
    add_job_options(parser, evaluates="evaluate" in schema.model_fields)
    parser.add_argument(
        "--processes",
        type=positive,
        metavar="N",
        help="only with --dry-run: check and estimate for N processes (default: those running)",
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_intermixed_args()

    def command() -> int:
        require("deepspeed")
        world = World.from_environment()
        planned = world
        if arguments.print_config and not arguments.dry_run:
            raise UsageError("--print-config: only for --dry-run; a run keeps its configuration as config.yaml in train.output")
        if arguments.processes is not None:
            if not arguments.dry_run:
                raise UsageError(
                    f"--processes {arguments.processes}: only for --dry-run; the launcher decides how many processes train "
                    "(deepspeed --num_gpus N, or sleepfm pretrain --processes N)"
                )
            planned = World(0, arguments.processes, 0, min(arguments.processes, GPUS_A_NODE))
        allowed = ["evaluate.allow_leakage=true"] if getattr(arguments, "allow_leakage", False) else []
        config = load_config(schema, arguments.config, [*arguments.overrides, *allowed])
        store = store_uri(config.tracking.uri)
        config = compute_dtype.as_begun(config, arguments.resume)
        preflight = Preflight(config, world, planned, store, arguments.resume, dataset_digest, arguments.dry_run)
        trial = _Trial(planned, arguments.print_config) if arguments.dry_run else None
        return _run(config, build, preflight, world, arguments.resume, store, trial)

    exit_ranked(command)


@dataclass(frozen=True)
class _Trial:
    """What ``--dry-run`` is asked for."""

    planned: World
    """The processes that it speaks of, whatever runs now."""
    prints_config: bool


def _run(
    config: ConfigT,
    build: Build[ConfigT],
    preflight: Preflight[ConfigT],
    world: World,
    resume: Resume,
    store: str,
    trial: _Trial | None,
) -> int:
    if preflight.done is not None:
        return _already_done(config, preflight.done, store) if world.is_main else 0
    preflight.before_start()
    start(world, _COLLECTIVE_TIMEOUT_SECONDS)
    watched = _Watched(Watchdog(world, config.train.stall_s, config.train.silent_s))
    context = Context(world, store, resume, config, observer=watched, on_paper=trial is not None)
    if trial is not None:
        stage, config = _stage(config, build, preflight, context)
        if config.init_from and (resume == "never" or not checkpoint.steps(RunFolder(config.train.output).checkpoints)):
            branch.initialise(stage.module, branch.weights_of(config.init_from, context.pull)[0])
        text = describe_plan(config, stage, world, trial.planned)
        if world.is_main:
            print(to_yaml(config) + text if trial.prints_config else text)
        return 0

    waits = SaidOnce()

    def wait(what: str) -> None:
        waits.say(f"{what}; waiting up to {PREDECESSOR_SECONDS:.0f} s for it to end")
        # No stall, which the watchdog would take it for.
        watched.goes_on(what)

    def hold(lock: ExitStack) -> dict[str, Any] | None:
        # What will be refused leaves nothing behind.
        if preflight.has_faults:
            return None
        lock.enter_context(only_writer(Path(config.train.output), PREDECESSOR_SECONDS, wait))
        # The job that was waited for may have finished the run.
        return RunFolder(config.train.output).check(config, preflight.dataset_digest, resume)

    with ExitStack() as lock:
        done = on_main(world, lambda: hold(lock))
        if done is None:
            return _train(config, build, preflight, context, watched)
    watched.close()
    return _already_done(config, done, store) if world.is_main else 0


def _train(config: ConfigT, build: Build[ConfigT], preflight: Preflight[ConfigT], context: Context, watched: _Watched) -> int:
    """The job itself, whose folder no other job writes into."""
    world, resume, store = context.world, context.resume, context.store
    folder = RunFolder(config.train.output)
    stage, config = _stage(config, build, preflight, context)
    if resume == "never":
        on_main(world, lambda: folder.clear())
    watched.reads(stage)
    watched.at("choosing the checkpoint", patient=True)
    saved = _starting_point(stage, config, preflight.dataset_digest, context)
    observers: list[Observer] = [watched]
    goodput = Goodput(world, folder, saved.step if saved else 0)
    observers.append(goodput)
    flops = item_flops(stage, world)
    exporter: Exporter | None = None
    if world.is_main:
        recorder = Recorder(stage, config, store, world, flops, goodput)
        exporter = Exporter(stage, config, store, recorder.tracker, total_steps(config, stage))
        observers = [recorder, exporter, *(tracker(stage, config) for tracker in TRACKERS), *observers]
        if config.train.profile:
            observers.append(Profiler(config.train.profiled, folder.profile))
    observer = Observers(observers)

    def conclude(trained: Trained, export: Export | None) -> dict[str, Any]:
        assert exporter is not None
        try:
            return _conclude(stage, config, trained, export, exporter, goodput, observer)
        finally:
            # Here, while the others wait: one that hears of an error ends, and the launcher with it this process.
            observer.close()

    try:
        trained = train(stage, config, world, saved, observer)
        watched.at("exporting", patient=True)
        export: Export | None = None
        if trained.finished:
            export = stage.export(trained.module.eval(), folder.root, context.work)
        outcome = on_main(world, lambda: conclude(trained, export))
    finally:
        observer.close()
    return 0 if outcome["finished"] else PREEMPTED_STATUS


def _stage(config: ConfigT, build: Build[ConfigT], preflight: Preflight[ConfigT], context: Context) -> tuple[Stage, ConfigT]:
    """The stage, and the configuration with its compute type decided, which ``context`` has from then on too."""

    def build_decided() -> Stage:
        nonlocal config
        # Not before: by now hosts are known to reach one another.
        context.config = config = compute_dtype.settle(config, context.world)
        if context.world.device.type == "cuda":
            # A run in fp32 is exact; what one in bf16 keeps in fp32 need not be.
            set_tf32(config.deepspeed.compute_dtype == "bf16")
        return build(config, context)

    stage = preflight.stage(build_decided)
    return stage, config


def _starting_point(stage: Stage, config: RunConfig, dataset_digest: str, context: Context) -> Saved | None:
    """The checkpoint to go on from, this run's own or the one that it branches from, else None, with ``init_from`` loaded."""
    world, folder = context.world, RunFolder(config.train.output)
    weights: Path | None = None
    if config.init_from:
        weights, context.started_from[config.init_from] = branch.weights_of(config.init_from, context.pull)

    def begin() -> None:
        branched = branch.origin(config.branch_from) if config.branch_from and not folder.is_run() else None
        folder.begin(config, dataset_digest, context.started_from, branched)
        keep_people(stage, config, folder, weights)
        if config.branch_from and not checkpoint.steps(folder.checkpoints):
            branch.take(config.branch_from, folder)

    on_main(world, begin)
    saved = checkpoint.choose(folder.checkpoints, world)
    step = saved.step if saved else 0
    changed = on_main(world, lambda: folder.steer(config, step, total_steps(config, stage), dataset_digest))
    follow(stage.stream, on_main(world, lambda: _data_history(folder)), config.train.global_batch)
    on_main(world, lambda: mend(folder, config.registry, step, total_steps(config, stage)))
    said = f"{folder.root}: continues from step {step}{f' with {changed}' if changed else ''}" if saved or changed else ""
    if weights is not None and saved is None:
        said = branch.initialise(stage.module, weights).describe(config.init_from)
    if said and world.is_main:
        print(said, flush=True)
    return saved


def _data_history(folder: RunFolder) -> list[tuple[int, dict[str, Any]]]:
    """Plain, for the ranks that do not see the folder."""
    return [(step, {"dataset_digest": str(data)} | data.to_record()) for step, data in folder.data_history()]


def _conclude(
    stage: Stage,
    config: RunConfig,
    trained: Trained,
    export: Export | None,
    exporter: Exporter,
    goodput: Goodput,
    observer: Observer,
) -> dict[str, Any]:
    """On rank 0: package the best weights, register them, and mark the run as done."""
    if not trained.finished:
        observer.ended("KILLED")
        print(f"{stage.name}: stopped by a signal; saved at step {trained.step}, the same command continues", flush=True)
        return {"finished": False}
    assert export is not None
    result = exporter.conclude(trained.best, export, trained.seconds, observer)
    observer.ended("FINISHED")
    folder = RunFolder(config.train.output)
    try:
        result |= exporter.register(result, observer)
    except RegistryError as error:
        raise RegistryError(
            f"{error}; the model is trained and its package is in {folder.package}: start the same command again when the "
            "store answers, or with another tracking.uri=, to register it without training"
        ) from error
    folder.write_result(result | {"goodput": goodput.summary()})
    metric = config.registry.metric
    lost = "".join(f"; lost: {what}" for what in folder.lost())
    print(
        f"{stage.name}: {counted(result['steps'], 'step')} in {result['seconds']:.0f} s, {goodput.describe()}, best {metric} "
        f"{result['metrics'][metric]:z.4f} at step {result['best_step']}; {describe(config, result)}{lost}",
        flush=True,
    )
    return result


class _Watched(Observer):
    """Lets the watchdog of this rank know where it is."""

    def __init__(self, watch: Watchdog) -> None:
        self._watch = watch

    def reads(self, stage: Stage) -> None:
        """From now on the shards that ``stage`` is reading are told, too."""
        report = report_of(stage.stream)
        if report is not None:
            self._watch.reading = report.reading

    def at(self, place: str, patient: bool = False) -> None:
        self._watch.at(place, patient)

    def goes_on(self, how_far: str = "", still_s: float = 0.0) -> None:
        self._watch.goes_on(how_far, still_s)

    def close(self) -> None:
        self._watch.close()


def _already_done(config: RunConfig, done: dict[str, Any], store: str) -> int:
    """Say so; register and deliver what could not be, or what a registry that has been lost held."""
    output = Path(config.train.output)
    if _is_registered(done, store) and not undelivered(output):
        label = f"{done['name']}:{done['version']}"
        print(f"{output}: already trained ({counted(done['steps'], 'step')}) and registered as {label}; nothing to do")
        return 0
    with only_writer(output):
        tracker = Tracker(output, store, config.tracking.experiment, done["tags"]["stage"], to_dict(config), done["tags"])
        try:
            done |= register(config, done, tracker.wait_for_run(), store)
        finally:
            warning = tracker.close()
        RunFolder(output).write_result(done)
    if warning:
        raise RegistryError(warning)
    print(f"{output}: was already trained; now registered as {done['name']}:{done['version']}")
    return 0


def _is_registered(done: dict[str, Any], store: str) -> bool:
    if "version" not in done:
        return False
    try:
        held = registry.look_up(f"models:/{done['name']}/{done['version']}", store)
    except RegistryError:
        return False
    return held.tags.get("sha256") == done["tags"]["sha256"]
