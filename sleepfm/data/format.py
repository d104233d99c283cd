"""The shard format that :mod:`shards` writes and this package reads; one place for both.

A data set folder is::

    dataset.json                    schema, configuration, digest, counts; written last, so its presence means whole
    manifest/records.parquet        one row a recording, in shard order
    manifest/shards.parquet         one row a shard: bytes, SHA-256
    manifest/segments.parquet       one row a sample: byte offsets of its members inside its tar
    manifest/quarantine.parquet     one row a refused recording, with the reason
    manifest/subjects.parquet       one row a person and visit: family, age, sex, BMI, AHI; earlier versions have none
    shards/shard-000000.tar         WebDataset samples; shard-000000.json beside it says what it holds

A sample is a segment of up to ``segment_epochs`` consecutive epochs of one recording, ``E`` of them. Members:

    json                            header: record, subject, first epoch, channels in order, scales, events
    <CHANNEL>.i16                   [E, 3000] little-endian int16; value * scale is the prepared signal
    stage.i8 apnea.i8 ...           [E] int8, -1 where unscored
    quality.u8                      [C, E] bits of :class:`sleepfm.signals.quality.Quality`, channels as in the header
    crc.u32                         [C, E] CRC-32 of each epoch's bytes in ``<CHANNEL>.i16``
"""

from __future__ import annotations

from sleepfm.constants import CHANNELS, EPOCH_SAMPLES

SCHEMA = 1

DATASET_FILE = "dataset.json"
MANIFEST_FOLDER = "manifest"
SHARD_FOLDER = "shards"
MANIFEST_TABLES = ("records", "segments", "shards", "quarantine", "subjects")

LABELS = ("stage", "apnea", "hypopnea", "desaturation", "arousal")

SAMPLE_BYTES = 2
EPOCH_BYTES = EPOCH_SAMPLES * SAMPLE_BYTES
CRC_BYTES = 4

# Robust-scaled signals are in units of the recording's IQR: +-32 holds every physiological wave with steps of
# 0.001 IQR, far below the amplifiers' noise. SpO2 stays in percent, with steps of 0.01 %.
INT16_MAX = 32767
SIGNAL_SCALE = 32 / INT16_MAX
SPO2_SCALE = 0.01
CHANNEL_SCALE = {channel: SPO2_SCALE if channel == "SPO2" else SIGNAL_SCALE for channel in CHANNELS}


def channel_member(channel: str) -> str:
    """Member name of a channel's samples."""
    return f"{channel}.i16"


def label_member(label: str) -> str:
    """Member name of a label."""
    return f"{label}.i8"


HEADER_MEMBER = "json"
QUALITY_MEMBER = "quality.u8"
CRC_MEMBER = "crc.u32"

# Every member that segments.parquet has an offset column for; -1 where the sample lacks it.
MEMBERS = (
    HEADER_MEMBER,
    *map(channel_member, CHANNELS),
    *map(label_member, LABELS),
    QUALITY_MEMBER,
    CRC_MEMBER,
)
