"""``sleepfm embed``: one embedding for each 30-s epoch, to Parquet."""

from __future__ import annotations

import argparse
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sleepfm.command_line import add_examples
from sleepfm.commands.options import add_cohort, add_device, add_store
from sleepfm.commands.refusals import Refusals
from sleepfm.errors import RecordingError, SleepFMError, StorageError, UsageError
from sleepfm.files import atomic_path, make_folder
from sleepfm.signals.files import is_remote, local_path, location
from sleepfm.wording import counted

CHUNK = 64
# The key of the file's metadata that says who wrote it.
_CONTENT = "sleepfm"
_DIGEST = "sleepfm.rows_sha256"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``sleepfm embed``."""
    parser.add_argument("source", metavar="SRC", help="a recording, a folder of recordings, or a data set of shards")
    parser.add_argument(
        "--model",
        required=True,
        metavar="URI",
        help="a model of the registry (models:/NAME@ALIAS or models:/NAME/VERSION), or a model folder",
    )
    parser.add_argument("--out", required=True, metavar="FILE.parquet", help="file for the embeddings")
    add_cohort(parser)
    add_store(parser)
    add_device(parser)
    add_examples(parser, "recordings --model models:/sleepfm-synthsleepnet@champion --out embeddings.parquet")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Embed night by night; the file appears when all are done. 1 if a recording was refused."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from sleepfm.models.device import choose_device
    from sleepfm.models.downstream import Downstream
    from sleepfm.models.masked_context import MaskedContext
    from sleepfm.models.recording import RecordingModel
    from sleepfm.registry.registry import load_package

    source, out = location(arguments.source), local_path(arguments.out, "--out")
    if not is_remote(source) and not source.exists():
        raise RecordingError(f"{source}: no such file or folder")
    if out.is_dir():
        raise UsageError(f"--out {out}: is a folder; give a file, for example {out / 'embeddings.parquet'}")
    if out.suffix != ".parquet":
        raise UsageError(f"--out {out}: embeddings are written as Parquet; give a file whose name ends in .parquet")
    # Bytes of no encoding in a name are kept apart.
    origin = str(source if is_remote(source) else source.resolve()).encode("utf-8", "backslashreplace").decode()
    _check_free(out, origin)
    device = choose_device(arguments.device)
    package = load_package(arguments.model, arguments.store)
    held = package.module.to(device)
    encoder: Any = held.encoder if isinstance(held, (Downstream, MaskedContext, RecordingModel)) else held
    schema = pa.schema(
        [
            ("record", pa.string()),
            ("epoch", pa.int32()),
            ("stage", pa.int8()),
            ("embedding", pa.list_(pa.float32())),
        ],
        metadata={
            _CONTENT: "embeddings",
            "source": origin,
            "model": package.source.uri,
            "model_sha256": package.config["weights"]["sha256"],
        },
    )
    embedded, refusals = 0, Refusals()
    make_folder(out.parent)
    digest = hashlib.sha256()
    with atomic_path(out) as unfinished, pq.ParquetWriter(unfinished, schema) as writer:
        for file, result in _embedded(source, encoder, arguments.cohort):
            if isinstance(result, SleepFMError):
                refusals.add(file, str(result))
                continue
            record, embedding, stage = result
            usable = embedding.isfinite().all(dim=1).tolist()
            if not any(usable):
                channels = ", ".join(encoder.channels)
                refusals.add(record, f"{record}: no epoch with a usable channel of the model ({channels})")
                continue
            columns = {
                "record": [record] * len(embedding),
                "epoch": list(range(1, len(embedding) + 1)),
                "stage": [s if s >= 0 else None for s in stage.tolist()],
                "embedding": [row if ok else None for row, ok in zip(embedding.numpy(), usable, strict=True)],
            }
            table = pa.table(columns, schema=schema)
            writer.write_table(table)
            _add_rows(digest, table)
            embedded += 1
            print(f"{record}: {counted(len(embedding), 'epoch')}", flush=True)
        writer.add_key_value_metadata({_DIGEST: digest.hexdigest()})
        _check_free(out, origin)
    if embedded + refusals.count > 1:
        print("\n".join(refusals.summary(f"{embedded} embedded")), flush=True)
    return 1 if refusals.count else 0


def _check_free(out: Path, source: str) -> None:
    """Only the embeddings of ``source`` that an earlier call wrote, and nobody has changed, are replaced. Raises
    :class:`StorageError`.
    """
    if not os.path.lexists(out):
        return
    metadata = {} if out.is_symlink() else _written(out)
    if _CONTENT.encode() not in metadata:
        raise StorageError(
            f"--out {out}: exists, and was not written by sleepfm embed or has changed since, so it is not replaced; give "
            "another file"
        )
    held = metadata.get(b"source", b"something else").decode()
    if held != source:
        raise StorageError(
            f"--out {out}: holds the embeddings of {held}, not of {source}, so it is not replaced; give another file"
        )


def _written(out: Path) -> dict[bytes, bytes]:
    """What an earlier call said of the file ``out``; nothing where its rows are not those that it wrote."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    digest = hashlib.sha256()
    try:
        with pq.ParquetFile(out) as file:
            metadata: dict[bytes, bytes] = file.metadata.metadata or {}
            for number in range(file.num_row_groups):
                _add_rows(digest, file.read_row_group(number))
    except (OSError, pa.ArrowException):
        return {}
    return metadata if metadata.get(_DIGEST.encode()) == digest.hexdigest().encode() else {}


def _add_rows(digest: Any, table: Any) -> None:
    """Add the columns of the Arrow table ``table`` by name, and every value, to ``digest`` of hashlib."""
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        if name == "embedding":
            digest.update(repr(column.is_null().to_pylist()).encode())
            column = column.flatten()
            digest.update(column.to_numpy(zero_copy_only=False).tobytes())
        else:
            digest.update(repr((name, column.to_pylist())).encode())


def _embedded(source: Path, encoder: Any, cohort: str) -> Iterator[tuple[str, Any]]:
    """The name of every recording, and (record, embedding [E, D], stage [E]) of the night or the error that refused it."""
    import torch

    from sleepfm.data.dataset import Dataset
    from sleepfm.data.format import DATASET_FILE
    from sleepfm.data.reader import ShardReader
    from sleepfm.data.record_labels import RecordLabels
    from sleepfm.inference.embed import embed, prepared_epochs, stored_epochs
    from sleepfm.inference.scorer import prepare_night
    from sleepfm.signals.cohorts.catalogue import load_rules
    from sleepfm.signals.prepare import discover
    from sleepfm.signals.record_names import names_below
    from sleepfm.signals.recording import opened_recording

    if not is_remote(source) and (source / DATASET_FILE).is_file():
        dataset = Dataset.open(source)
        labels = RecordLabels(dataset, ShardReader(dataset), ("stage",))
        for row, record in enumerate(dataset.names):
            try:
                embedding = embed(encoder, stored_epochs(dataset, record, encoder.channels, CHUNK))
                yield record, (record, embedding, torch.from_numpy(labels.of(row)["stage"]))
            except SleepFMError as error:
                yield record, error
        return
    unlisted: dict[str, str] = {}
    recordings = discover(source, load_rules(cohort), unlisted=unlisted)
    for folder, why in unlisted.items():
        yield folder, RecordingError(f"{folder}: {why}")
    names = names_below(recordings, source)
    for path, found in recordings.items():
        try:
            found.check(str(path))
            with opened_recording(path, found.header) as recording:
                night = prepare_night(recording, cohort, found.scoring, names[path])
            embedding = embed(encoder, prepared_epochs(night, encoder.channels, CHUNK))
            yield str(path), (night.record, embedding, torch.from_numpy(night.stage))
        except SleepFMError as error:
            yield str(path), error
