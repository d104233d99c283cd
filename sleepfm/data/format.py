"""The shard format that :mod:`shards` writes and this package reads; one place for both.

A data set folder is::

    dataset.json                    schema, configuration, digest, counts; written last, so its presence means whole
    wids.json                       the shards and their samples, for `wids.ShardListDataset`
    manifest/records.parquet        one row a recording, in shard order
    manifest/shards.parquet         one row a shard: bytes, SHA-256
    manifest/segments.parquet       one row a sample: byte offsets of its members inside its tar
    manifest/quarantine.parquet     one row a refused recording, with the reason
    manifest/subjects.parquet       one row a person and visit: family, age, sex, BMI, AHI; earlier versions have none
    shards/shard-000000.tar         WebDataset samples; shard-000000.json beside it says what it holds

A sample is a segment of up to ``segment_epochs`` consecutive epochs of one recording, ``E`` of them. Members, in this order:

    json                            header: record, subject, first epoch, channels in order, rates, scales, events
    crc.npy                         [C, E] uint32, CRC-32 of each epoch's values in ``<channel>.npy``, channels as in the header
    quality.npy                     [C, E] uint8, bits of :class:`sleepfm.signals.quality.Quality`
    stage.npy apnea.npy ...         [E] int8, -1 where unscored
    <channel>.npy                   [E, 30 * rate] int16; value * scale is the prepared signal at the channel's rate

A channel is stored at the rate that holds its band (:mod:`sleepfm.signals.rates`). Names are in lower case, in which WebDataset
gives them. Of the first schema, whose members were named ``<CHANNEL>.i16``, ``<label>.i8``, ``quality.u8`` and ``crc.u32`` and
held the same values without a header, all channels at 100 Hz, :data:`LAYOUTS` says where they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sleepfm.constants import CHANNELS, EPOCH_SECONDS

SCHEMA = 2

DATASET_FILE = "dataset.json"
INDEX_FILE = "wids.json"
MANIFEST_FOLDER = "manifest"
SHARD_FOLDER = "shards"
MANIFEST_TABLES = ("records", "segments", "shards", "quarantine", "subjects")

LABELS = ("stage", "apnea", "hypopnea", "desaturation", "arousal")

SAMPLE_BYTES = 2
CRC_BYTES = 4

# Robust-scaled signals are in units of the recording's IQR: +-32 holds every physiological wave with steps of
# 0.001 IQR, far below the amplifiers' noise. SpO2 stays in percent, with steps of 0.01 %.
INT16_MAX = 32767
SIGNAL_SCALE = 32 / INT16_MAX
SPO2_SCALE = 0.01
CHANNEL_SCALE = {channel: SPO2_SCALE if channel == "SPO2" else SIGNAL_SCALE for channel in CHANNELS}


RateT = TypeVar("RateT", int, NDArray[np.int64])


def epoch_bytes(rate: RateT) -> RateT:
    """Bytes of an epoch of a channel that is stored at ``rate`` Hz, or of several."""
    return rate * EPOCH_SECONDS * SAMPLE_BYTES


def channel_member(channel: str) -> str:
    """Member name of a channel's samples."""
    return f"{channel.lower()}.npy"


def label_member(label: str) -> str:
    """Member name of a label."""
    return f"{label}.npy"


HEADER_MEMBER = "json"
QUALITY_MEMBER = "quality.npy"
CRC_MEMBER = "crc.npy"

# Every member that segments.parquet has an offset column for, in the order in which they lie; -1 where the sample lacks it.
# What is small comes first, so that it is read in one go.
MEMBERS = (
    HEADER_MEMBER,
    CRC_MEMBER,
    QUALITY_MEMBER,
    *map(label_member, LABELS),
    *map(channel_member, CHANNELS),
)

# Magic and version of the format (numpy.lib.format), the length of the text, the text up to a line end.
NPY_HEADER_BYTES = 128
_NPY_MAGIC = b"\x93NUMPY\x01\x00"


def npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """The first :data:`NPY_HEADER_BYTES` bytes of a ``.npy`` file, as numpy's own up to the padding.

    Made here: neither the bytes of a data set nor the place of the values may depend on the version of numpy.
    """
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape!r}, }}".encode()
    length = NPY_HEADER_BYTES - len(_NPY_MAGIC) - 2
    return _NPY_MAGIC + length.to_bytes(2, "little") + text.ljust(length - 1) + b"\n"


def npy(values: NDArray[Any]) -> bytes:
    """``values``, little-endian and contiguous, as the content of a ``.npy`` member."""
    return b"".join((npy_header(values.dtype.str, values.shape), values.data.cast("B")))


@dataclass(frozen=True)
class Layout:
    """Where a schema keeps what :data:`MEMBERS` names: the member of the tar, by ours, and the bytes before its values."""

    members: Mapping[str, str]
    header_bytes: int

    def skipped(self, member: str) -> int:
        """Bytes of ``member``, one of ours, before its values."""
        return 0 if member == HEADER_MEMBER else self.header_bytes


LAYOUTS = {
    1: Layout(
        {HEADER_MEMBER: HEADER_MEMBER}
        | {channel_member(channel): f"{channel}.i16" for channel in CHANNELS}
        | {label_member(label): f"{label}.i8" for label in LABELS}
        | {QUALITY_MEMBER: "quality.u8", CRC_MEMBER: "crc.u32"},
        header_bytes=0,
    ),
    SCHEMA: Layout({member: member for member in MEMBERS}, NPY_HEADER_BYTES),
}
