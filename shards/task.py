"""One shard from its recordings: what a Ray task runs, and what it leaves behind.

The tar is written under a temporary name and renamed; the JSON beside it is written the same way afterwards and
marks the shard as done. It holds the manifest rows, so that nothing of size passes through Ray: some 10 kB a recording, where the
driver ends an upload.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from shards.build_config import BuildConfig, chosen_cohort
from shards.faults import fault_of, kind_of
from shards.lease import Builder
from shards.names import shown
from shards.plan import Entry, ShardPlan
from shards.privacy import kept_description, kept_message, kept_scoring, token
from shards.samples import Converted, QuantisedRecording, quantise_recording, write_recording
from shards.scored_with import ScoredWith, found_scoring, scored_with
from shards.task_folder import Arrived, task_folder
from shards.whose import NOT_KNOWN, Whose
from shards.writer import ShardWriter
from sleepfm.constants import EPOCH_SECONDS
from sleepfm.data.format import SHARD_FOLDER
from sleepfm.errors import AnnotationError, InternalError, RecordingError, SleepFMError
from sleepfm.files import atomic_file, write_json
from sleepfm.signals.discover import Discovered
from sleepfm.signals.files import name_below
from sleepfm.signals.prepare import prepare_in_turn
from sleepfm.signals.recording import Recording, opened_recording

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Refusal:
    """A recording that was not converted: relative path, bytes, class of the error, and the reason."""

    path: str
    size: int
    error: str
    reason: str
    scoring: ScoredWith = None
    """What scores it, where that is why it was refused."""


@dataclass(frozen=True)
class Outcome:
    """What one shard's task did; ``hours`` of recording; and what is ``left`` to do for :func:`shards.task_folder.complete`."""

    shard: str
    converted: int
    hours: float
    seconds: float
    refusals: tuple[Refusal, ...]
    left: Arrived | None = None


@dataclass(frozen=True)
class Failure:
    """A shard whose task ended without a result, its recordings, and why."""

    shard: str
    recordings: tuple[str, ...]
    reason: str


def sidecar_path(out: Path, shard: str) -> Path:
    """The JSON that marks ``shard`` as done."""
    return (out / SHARD_FOLDER / shard).with_suffix(".json")


def build_shard(
    source: Path,
    out: Path,
    shard: ShardPlan,
    config: BuildConfig,
    build: str,
    known: Mapping[str, Discovered] = MappingProxyType({}),
    files: Mapping[str, str] = MappingProxyType({}),
    refused: Mapping[str, Refusal] = MappingProxyType({}),
    builder: Builder | None = None,
    began: Callable[[], object] = lambda: None,
    whose: Mapping[str, Whose] = MappingProxyType({}),
    hand_over: bool = False,
) -> Outcome:
    """Convert the recordings of ``shard`` one by one and write its tar and sidecar; what a Ray task runs.

    A recording that raises a :class:`SleepFMError`, or whose file the system cannot read, is refused and the rest
    goes on. So is one that brings a fault of this program to light, as an :class:`InternalError`.

    Args:
        build: digest of the build's identity, kept in the sidecar.
        known: what was learnt of recordings when they were found, by their paths relative to ``source``.
        files: these paths by what stands for them in the plan, where that is something else (:func:`shards.privacy.token`).
        refused: recordings that are not looked at, by their paths in the plan, and what the manifest says of them.
        builder: whose task this is; what it does once another one builds into ``out`` is to end.
        began: called whenever the next recording is turned to.
        whose: recordings are, by their paths in the plan, where neither a rule nor the name of the file alone says it.
        hand_over: leave the end of an upload in parts to the caller, in the outcome's ``left``.

    Raises:
        BusyError: another builder has taken over.
        StorageError: the output folder or URL cannot be written to, or the folder is not the builder's.
        MemoryError: memory ran out; another attempt may find more.
    """
    started = time.monotonic()
    cohort = chosen_cohort(config)
    left_out = dict(refused)
    handed: list[Arrived] = []

    def faulty(entry: Entry, error: Exception) -> Refusal:
        log.error("%s: a fault of this program", shown(entry.path), exc_info=error)
        said = shown(kept_message(fault_of(error), files.get(entry.path, entry.path), config.privacy))
        return Refusal(entry.path, entry.size, InternalError.__name__, said)

    def night_of(entry: Entry) -> QuantisedRecording | Refusal:
        if entry.path in left_out:
            return left_out[entry.path]
        began()
        log.info("%s: converting for %s", shown(entry.path), shard.name)
        path = files.get(entry.path, entry.path)
        found, person = known.get(path, Discovered()), whose.get(entry.path, NOT_KNOWN)
        try:
            found.check(path, token(name_below(found.same_as, source), config.privacy) if found.same_as else "")
            with opened_recording(source / path, found.header, names_below=source) as recording:
                _check_size(recording, entry)
                night = quantise_recording(
                    *prepare_in_turn(
                        recording,
                        cohort,
                        source,
                        found.scoring,
                        config.require,
                        config.event_rule,
                        config.scoring,
                        config.channels,
                        person.called(path, entry.record),
                    )
                )
            description = kept_description(night.description, path, config.privacy)
            if person.subject and not description.provenance["subject_read"]:
                description = replace(description, subject=person.subject)
            return replace(night, description=description)
        except (SleepFMError, OSError) as error:
            reason = (getattr(error, "strerror", None) or str(error)).removeprefix(f"{path}: ")
            said = shown(kept_message(reason, path, config.privacy))
            scoring = found_scoring(source / path, source, cohort, found) if isinstance(error, AnnotationError) else None
            return Refusal(entry.path, entry.size, kind_of(error, source / path), said, kept_scoring(scoring, config.privacy))
        except MemoryError:
            raise
        except Exception as error:
            return faulty(entry, error)

    while True:
        try:
            with task_folder(out, shard.name, builder, handed.append if hand_over else None) as folder:
                # What goes on to a store need not survive a power cut here.
                content = write_shard(folder, shard, night_of, config, build, source, durable=folder == out)
            break
        except (SleepFMError, OSError, MemoryError):
            raise
        except Exception as error:
            # Its samples were made and could not be written: the shard begins again without it.
            notes = getattr(error, "__notes__", ())
            at_work = [entry for entry in shard.entries if _note(source / entry.path) in notes]
            if not at_work:
                raise
            left_out[at_work[0].path] = faulty(at_work[0], error)
    return Outcome(
        shard.name,
        len(content["records"]),
        sum(record["n_epochs"] for record in content["records"]) * EPOCH_SECONDS / 3600,
        time.monotonic() - started,
        tuple(Refusal(**refusal) for refusal in content["quarantine"]),
        handed[0] if handed else None,
    )


def _check_size(recording: Recording, entry: Entry) -> None:
    """The recording is as large as when it was found, so that the next build does not take what is made of it for another's.

    Raises:
        RecordingError: it is not.
    """
    size = recording.header.file_bytes if recording.header else entry.size
    if size != entry.size:
        raise RecordingError(
            f"{recording.name}: had {entry.size} bytes when it was found and has {size} now; wait until the file is complete, "
            "then run the same command again"
        )


def write_shard(
    out: Path,
    shard: ShardPlan,
    night_of: Callable[[Entry], QuantisedRecording | Refusal],
    config: BuildConfig,
    build: str,
    source: Path,
    durable: bool = True,
) -> dict[str, Any]:
    """Write the tar and then the sidecar of ``shard`` and return the sidecar's content.

    ``night_of`` is called once an entry, in order; one night is in memory at a time. A shard of which every
    recording is refused has a sidecar but no tar. ``durable`` files survive a power cut.

    Raises:
        StorageError: the output folder cannot be written to.
    """
    converted: list[Converted] = []
    refusals: list[Refusal] = []
    scored: dict[str, ScoredWith] = {}
    tar = out / SHARD_FOLDER / shard.name
    with atomic_file(tar, durable) as file, closing(ShardWriter(file)) as writer:
        for entry in shard.entries:
            with _named(source / entry.path):
                night = night_of(entry)
                if isinstance(night, Refusal):
                    refusals.append(night)
                else:
                    scored[entry.path] = kept_scoring(scored_with(night.description.scoring_file), config.privacy)
                    converted.append(write_recording(night, entry, writer, config.segment_epochs, config.quality.mask))
    if not converted:
        tar.unlink()
    content: dict[str, Any] = {
        "build": build,
        "shard": shard.name,
        "entries": entries_digest(shard),
        "bytes": writer.bytes if converted else 0,
        "sha256": writer.sha256 if converted else "",
        "records": [item.record for item in converted],
        "rules": {item.record["cohort"]: item.record["provenance"].get("cohort_rules") for item in converted},
        "segments": [item.segments for item in converted],
        "quarantine": [asdict(refusal) for refusal in refusals],
        "scored_with": scored,
    }
    write_json(sidecar_path(out, shard.name), {**content, "digest": _digest(content)}, compact=True, durable=durable)
    return content


def read_sidecar(out: Path, shard: ShardPlan, build: str) -> dict[str, Any] | None:
    """The sidecar of ``shard``, or None where the shard is not done: absent, damaged, of another build, or tar amiss."""
    try:
        content: dict[str, Any] = json.loads(sidecar_path(out, shard.name).read_text(encoding="utf-8"))
        if content.pop("digest") != _digest(content):
            return None
    except (FileNotFoundError, ValueError, KeyError, AttributeError):
        return None
    tar = out / SHARD_FOLDER / shard.name
    size = tar.stat().st_size if tar.exists() else 0
    same = content.get("build") == build and content.get("entries") == entries_digest(shard)
    return content if same and content.get("bytes") == size else None


def entries_digest(shard: ShardPlan) -> str:
    """Digest of what a shard is made from."""
    return _digest([asdict(entry) for entry in shard.entries])


def _digest(value: Any) -> str:
    """SHA-256 of plain JSON types, in which a file name may be no UTF-8."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Names the recording in whatever error passes."""
    try:
        yield
    except BaseException as error:
        error.add_note(_note(path))
        raise


def _note(path: Path) -> str:
    return f"while converting {shown(str(path))}"
