"""A build from folder to data set: plan, run what is not done, write the manifest."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Container, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path

from shards.build_config import BuildConfig, chosen_cohort, everywhere, identity
from shards.cluster import cluster, run_shards
from shards.lease import Builder, Check, only_builder
from shards.left_out import SET_ASIDE, Exclusion, left_out
from shards.manifest import write_manifest
from shards.names import shown
from shards.nodes import require_shared
from shards.people import Tables, check_moves, people_lines
from shards.plan import PLAN_FILE, Plan, ShardPlan, extend, read_plan, write_plan
from shards.privacy import kept_scoring, token
from shards.progress import ListingProgress, Progress
from shards.result import BuildResult, Told
from shards.schedule import News
from shards.scored_with import ScoredWith, found_scorings, is_another, kept_of
from shards.split import empty_splits
from shards.stale import discard, refuse_stale, stale_shards
from shards.task import Refusal, read_sidecar, sidecar_path
from shards.whose import Whose, stored_subjects, whose_recordings
from shards.working_copy import WorkingCopy, working_copy
from sleepfm.config import digest
from sleepfm.data.format import DATASET_FILE, INDEX_FILE, MANIFEST_FOLDER, MANIFEST_TABLES, SHARD_FOLDER
from sleepfm.errors import DatasetError, UsageError
from sleepfm.files import make_folder, remove_temporaries
from sleepfm.signals.cohorts.catalogue import all_cohorts
from sleepfm.signals.cohorts.cohort import Cohort
from sleepfm.signals.cohorts.identity import check_identity
from sleepfm.signals.discover import Discovered
from sleepfm.signals.files import file_size, is_remote, name_below
from sleepfm.signals.prepare import discover_names
from sleepfm.wording import counted, for_number

_SHARD_FILES = r"shard-[0-9]{6,}\.(?:tar|json)"


@dataclass(frozen=True)
class _Done:
    """What finished shards hold: their names, and the paths they converted and refused."""

    shards: set[str]
    converted: set[str]
    refused: set[str]
    scored_with: dict[str, ScoredWith] = field(default_factory=dict)
    cohorts: dict[str, str] = field(default_factory=dict)
    """Names of the cohorts of those that were converted."""
    set_aside: set[str] = field(default_factory=set)
    """Those that were refused for being excluded or gone."""


def build(
    source: Path,
    out: Path,
    config: BuildConfig,
    workers: int,
    retry_refused: bool = False,
    rebuild: bool = False,
    exclude: Sequence[str] = (),
    removal_intended: bool = False,
) -> BuildResult:
    """Convert every recording below ``source`` that ``out`` does not hold yet; see :mod:`shards`.

    Args:
        retry_refused: try refused recordings again.
        rebuild: make shards anew that another version of the code or other rules of their cohorts made.
        exclude: recordings that are left out, see :class:`shards.left_out.Exclusion`.
        removal_intended: the caller removes what was converted from ``source``; nothing is said of it.

    Raises:
        RecordingError: ``source`` holds no recording; nothing is written.
        ConfigError: the cohort's identity pattern fits no recording, or ``out`` holds a build of another configuration or
            shards that ``rebuild`` would make anew; nothing is written.
        UsageError: ``out`` lies in ``source`` or the other way round, or nothing is excluded by what is to exclude.
        BusyError: ``out`` is being built by another process.
        DatasetError: ``out`` is something else or holds a file that a build did not write, its source has changed, or people
            would come into another split, or the table that says whose they are is damaged.
        SubjectTableError: a table of people cannot be used; nothing is written.
        StorageError: ``out`` cannot be written to.
        ShardError: tasks failed.
    """
    source, out = source if is_remote(source) else source.resolve(), out if is_remote(out) else out.resolve()
    if f"{out}/".startswith(f"{source}/") or f"{source}/".startswith(f"{out}/"):
        raise UsageError(f"{out}: the output must lie outside the source {source}")
    with working_copy(out) as copy:
        return _build(source, copy, config, workers, retry_refused, rebuild, exclude, removal_intended)


def _build(
    source: Path,
    copy: WorkingCopy,
    config: BuildConfig,
    workers: int,
    retry_refused: bool,
    rebuild: bool,
    exclude: Sequence[str],
    removal_intended: bool,
) -> BuildResult:
    out = copy.folder
    wanted = identity(config)
    planned = read_plan(out, wanted)
    # What a task may need is told from how long its recordings are.
    unlisted: dict[str, str] = {}
    exclusion = Exclusion(exclude, source)
    listing = ListingProgress(shown(str(source)))
    extents = config.ray.task_memory_mb == "auto"
    known = discover_names(source, chosen_cohort(config), extents, unlisted, exclusion, listing.update)
    for entry in planned.entries():
        exclusion(entry.path)  # it may be gone from the source
    exclusion.check()
    root = source
    if "" in known:  # it is a recording
        root, known = source.parent, {source.name: known[""]}
    check_identity(known, chosen_cohort(config))
    files = {token(path, config.privacy): path for path in known}
    found = {name: _size(root / path) if known[path].size is None else known[path].size or 0 for name, path in files.items()}
    excluded = {token(name, config.privacy) for name in exclusion.names}
    people = Tables.read(source, config, move=rebuild)
    printed: set[str] = set()
    with only_builder(copy.url, config.store.lease_s, lambda said: print(said, flush=True)) as (builder, check):
        copy.pull()
        before = read_plan(out, wanted)
        check_moves(out, config.split, people)
        stale = stale_shards(out, before, wanted, config)
        if not rebuild:
            refuse_stale(out, before, stale)
        for folder in (out / SHARD_FOLDER, out / MANIFEST_FOLDER):
            make_folder(folder)
        remove_temporaries(out, "|".join(map(re.escape, (PLAN_FILE, DATASET_FILE, INDEX_FILE))))
        remove_temporaries(out / SHARD_FOLDER, _SHARD_FILES)
        remove_temporaries(out / MANIFEST_FOLDER, rf"(?:{'|'.join(MANIFEST_TABLES)})\.parquet")
        done = _survey(out, before, stale)
        late = _scored_since(done, files, known, root, config, rebuild)
        rescored = _to_do_again(before, done, found, late)
        withdrawn = _to_do_without(before, done, found, excluded)
        gone = dict.fromkeys(sorted(done.converted - found.keys() - excluded))
        if gone and not removal_intended:
            kept = "what was converted stays in the data set, and --exclude takes it out"
            print(f"{_recordings(gone)} gone from the source: {kept}", flush=True)
        refused = left_out(before, done.shards, stale, found.keys(), excluded)
        size = config.recordings_per_shard
        plan = _plan(replace(before, identity=wanted), done, found, root, size, retry_refused, late.keys())
        _check_free(out, plan, before)
        todo = [shard for shard in plan.shards if shard.name not in done.shards]
        # Who is in a data set is moved by --rebuild alone.
        subjects = stored_subjects(out) if _converts_again(todo, before) and not rebuild else {}
        if stale:
            print(f"making {len(stale)} of {counted(len(before.shards), 'shard')} again: {', '.join(stale)}", flush=True)
        if rescored:
            print(f"{_shards(rescored)} built again: {_recordings(late)} a scoring that came or changed since", flush=True)
        if withdrawn:
            print(f"{_shards(withdrawn)} built again: without recordings that are excluded now", flush=True)
        if again := [*stale, *rescored, *withdrawn]:
            discard(out, again)
        if plan != before:
            write_plan(out, plan)
        copy.abandon_uploads()
        copy.publish(check)
        if todo:
            whose = whose_recordings(plan, files, {shard.name for shard in todo}, subjects)
            printed = _run(todo, root, copy.url, config, plan, workers, known, files, refused, builder, check, whose)
            copy.pull()
            # Workers that died have left files that nobody will finish.
            remove_temporaries(out / SHARD_FOLDER, _SHARD_FILES)
        told = Told(plan, config)
        description = write_manifest(out, plan, people, told.see)
        copy.publish(check)
    shared = tuple(told.scorings.lines(lambda file: shown(file.name)))
    folders = {shown(token(name_below(Path(folder), source), config.privacy)): why for folder, why in unlisted.items()}
    known_of, warnings = people_lines(out, people)
    warnings += empty_splits(description["split"], config.split)
    return BuildResult(
        description,
        told.quarantine,
        printed,
        told.texts,
        told.unscored,
        told.unread,
        folders,
        shared,
        {shown(path) for path in plan.latest.keys() - found.keys() - excluded} - printed,
        tuple(known_of),
        tuple(warnings),
    )


def _converts_again(todo: Sequence[ShardPlan], before: Plan) -> bool:
    """Whether recordings that were planned ``before`` are to do, of which the manifest may know whose they are."""
    return any(entry.path in before.latest for shard in todo for entry in shard.entries)


def _check_free(out: Path, plan: Plan, before: Plan) -> None:
    """Nothing is there under the names of shards that are new in ``plan``. Raises :class:`DatasetError`."""
    for shard in plan.shards[len(before.shards) :]:
        for path in (out / SHARD_FOLDER / shard.name, sidecar_path(out, shard.name)):
            if os.path.lexists(path):
                raise DatasetError(f"{path}: exists and was not written by a build; move it away, or build into another folder")


def _size(path: Path) -> int:
    """Bytes; 0 for what cannot be read, as converting it will say."""
    try:
        return file_size(path)
    except OSError:
        return 0


def _survey(out: Path, plan: Plan, stale: Container[str]) -> _Done:
    done = _Done(set(), set(), set())
    for shard in plan.shards:
        sidecar = read_sidecar(out, shard, digest(plan.identity))
        if sidecar is not None and shard.name not in stale:
            done.shards.add(shard.name)
            done.converted.update(record["source"] for record in sidecar["records"])
            done.refused.update(refusal["path"] for refusal in sidecar["quarantine"])
            done.set_aside.update(refusal["path"] for refusal in sidecar["quarantine"] if refusal["error"] in SET_ASIDE)
            done.scored_with.update(kept_of(sidecar))
            done.cohorts.update((record["source"], record["cohort"]) for record in sidecar["records"])
    done.refused.difference_update(done.converted)
    return done


def _scored_since(
    done: _Done, files: Mapping[str, str], known: Mapping[str, Discovered], root: Path, config: BuildConfig, rebuild: bool
) -> dict[str, ScoredWith]:
    """Finished recordings that have another scoring now than the one they were converted or refused with.

    ``files`` are their paths by what stands for them in the plan. With ``rebuild`` one counts as another where an earlier
    version did not keep by what to tell.
    """
    if config.scoring == "ignore":
        return {}
    rules = chosen_cohort(config)
    cohorts = None if isinstance(rules, Cohort) else rules or all_cohorts()
    now = found_scorings(
        {
            path: (
                root / files[path],
                (cohorts.named(done.cohorts.get(path, "")) if cohorts else None) or rules,
                known[files[path]],
            )
            for path in done.scored_with
            if path in files
        },
        root,
    )
    kept = {path: kept_scoring(found, config.privacy) for path, found in now.items()}
    return {path: found for path, found in kept.items() if is_another(found, done.scored_with[path], rebuild)}


def _to_do_again(plan: Plan, done: _Done, found: dict[str, int], late: Mapping[str, ScoredWith]) -> set[str]:
    """Finished shards with recordings that have another scoring now; they are no longer among ``done``."""
    again = set()
    for shard in plan.shards:
        wanted = [entry.path for entry in shard.entries if entry.path in late and entry.path in done.converted]
        if shard.name not in done.shards or not any(plan.latest[path] == shard.name for path in wanted):
            continue
        gone = [entry.path for entry in shard.entries if entry.path not in found and plan.latest[entry.path] == shard.name]
        if gone:
            print(
                f"{shard.name}: {_recordings(dict.fromkeys(wanted))} a scoring that came or changed since and is not taken: "
                f"{shown(gone[0])} of the same shard is gone; put it back",
                flush=True,
            )
            continue
        again.add(shard.name)
    done.shards.difference_update(again)
    return again


def _to_do_without(plan: Plan, done: _Done, found: Container[str], excluded: Collection[str]) -> set[str]:
    """Finished shards with recordings that are excluded now; they are no longer among ``done``. Raises :class:`DatasetError`."""
    again = set()
    for shard in plan.shards:
        own = [entry.path for entry in shard.entries if plan.latest[entry.path] == shard.name]
        judged = (done.converted | done.refused) - done.set_aside
        if shard.name not in done.shards or not (withdrawn := [path for path in own if path in excluded and path in judged]):
            continue
        if gone := [path for path in own if path in done.converted and path not in found and path not in excluded]:
            raise DatasetError(
                f"{shown(withdrawn[0])}: excluded, but its {shard.name} cannot be built again without it: {shown(gone[0])} of "
                "that shard is gone from the source; put it back, or build into another folder"
            )
        again.add(shard.name)
    done.shards.difference_update(again)
    return again


def _shards(names: set[str]) -> str:
    return f"{len(names)} shards are" if len(names) != 1 else f"{next(iter(names))} is"


def _recordings(paths: Mapping[str, object]) -> str:
    listed = [shown(path) for path in list(paths)[:3]]
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return f"{', '.join(listed)}{more} {'have' if len(paths) != 1 else 'has'}"


def _plan(
    plan: Plan,
    done: _Done,
    found: dict[str, int],
    source: Path,
    size: int,
    retry_refused: bool,
    rescored: Set[str] = frozenset(),
) -> Plan:
    """The plan brought up to the source: sizes of what is still to do, and shards for what is new.

    Refused recordings are planned again where their size has changed or they are among ``rescored``.
    """
    # A recording that was refused and planned again counts as it was the last time.
    changed = {path for path, size in plan.sizes.items() if found.get(path, size) != size}
    for path in sorted(changed & done.converted):
        raise DatasetError(f"{shown(str(source / path))}: has changed since it was converted; build into another folder")
    pending = [_latest(shard, plan) for shard in plan.shards if shard.name not in done.shards]
    current = Plan(
        plan.identity,
        tuple(shard if shard.name in done.shards else _with_sizes(_latest(shard, plan), found) for shard in plan.shards),
    )
    waiting = {entry.path for shard in pending for entry in shard.entries}
    retry = (done.refused if retry_refused else done.refused & (changed | rescored | done.set_aside)) & found.keys() - waiting
    return extend(current, found, size, retry)


def _latest(shard: ShardPlan, plan: Plan) -> ShardPlan:
    """``shard`` without the recordings that were refused in it and planned again."""
    return replace(shard, entries=tuple(entry for entry in shard.entries if plan.latest[entry.path] == shard.name))


def _with_sizes(shard: ShardPlan, found: dict[str, int]) -> ShardPlan:
    return replace(shard, entries=tuple(replace(entry, size=found.get(entry.path, entry.size)) for entry in shard.entries))


def _run(
    todo: list[ShardPlan],
    source: Path,
    out: Path,
    config: BuildConfig,
    plan: Plan,
    workers: int,
    known: Mapping[str, Discovered],
    files: Mapping[str, str],
    refused: Mapping[str, Refusal],
    builder: Builder,
    check: Check,
    whose: Mapping[str, Whose],
) -> set[str]:
    count = sum(len(shard.entries) for shard in todo)
    finished = len(plan.shards) - len(todo)
    kept = f", {counted(finished, 'shard')} {for_number(finished, 'is')} finished already" if finished else ""
    print(f"{counted(count, 'recording')} in {counted(len(todo), 'shard')}{kept}; starting Ray", flush=True)
    progress = Progress(len(todo), count)

    def report(news: News) -> None:
        check()
        progress.update(news)

    told = (everywhere(config), digest(plan.identity), report, known, files, refused, builder, whose)
    with cluster(workers) as ray:
        require_shared(ray, source, builder)
        run_shards(ray, todo, source, out, *told)
    return progress.refused
