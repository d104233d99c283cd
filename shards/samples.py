"""A prepared recording as WebDataset samples and manifest rows."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.plan import Entry
from shards.writer import ShardWriter
from sleepfm.constants import CHANNELS, EPOCH_SECONDS, STAGE_NAMES
from sleepfm.data.format import (
    CHANNEL_SCALE,
    CRC_MEMBER,
    HEADER_MEMBER,
    INT16_MAX,
    LABELS,
    MEMBERS,
    QUALITY_MEMBER,
    channel_member,
    label_member,
    npy,
)
from sleepfm.data.quantisation import quantise
from sleepfm.signals.prepare import RecordingDescription
from sleepfm.signals.rates import recording_rate
from sleepfm.signals.scorings.scoring import Event

RESPIRATORY = ("apnea", "hypopnea", "desaturation")


@dataclass(frozen=True)
class Converted:
    """Manifest rows of one recording: its row of ``records`` and, a sample each, its rows of ``segments``."""

    record: dict[str, Any]
    segments: list[list[int]]


@dataclass(frozen=True)
class QuantisedRecording:
    """A recording as its samples store it: ``steps`` is canonical name to [n_epochs, 30 * rate], ``rate`` to Hz."""

    description: RecordingDescription
    steps: dict[str, NDArray[np.int16]]
    rate: dict[str, int]


def quantise_recording(
    description: RecordingDescription, channels: Iterable[tuple[str, NDArray[np.float32]]]
) -> QuantisedRecording:
    """``channels``, each at its stored rate, as they come, so that of one at a time the samples are in memory as float32."""
    steps: dict[str, NDArray[np.int16]] = {}
    rate: dict[str, int] = {}
    for channel, samples in channels:
        rate[channel] = recording_rate(description.provenance, channel)
        steps[channel] = quantise(channel, samples).reshape(-1, rate[channel] * EPOCH_SECONDS)
        # Else they live on while the next channel is made.
        del samples
    return QuantisedRecording(description, {name: steps[name] for name in CHANNELS if name in steps}, rate)


def epoch_labels(night: RecordingDescription) -> dict[str, NDArray[np.int8]]:
    """All labels of the night, [E]. Respiratory ones are -1 where the stage is unscored; wake keeps 0 or 1."""
    labels = {"stage": night.stage, **night.labels}
    for name in RESPIRATORY:
        labels[name] = np.where(night.stage < 0, np.int8(-1), labels[name])
    return labels


def write_recording(
    recording: QuantisedRecording, entry: Entry, writer: ShardWriter, segment_epochs: int, quality_mask: int
) -> Converted:
    """Write the samples of ``recording`` and describe them."""
    night, steps, channels = recording.description, recording.steps, list(recording.steps)
    labels = epoch_labels(night)
    segments = []
    for number, begin in enumerate(range(0, night.n_epochs, segment_epochs)):
        end = min(begin + segment_epochs, night.n_epochs)
        part = {channel: steps[channel][begin:end] for channel in channels}
        members = {
            HEADER_MEMBER: _header(recording, entry, number, begin, end),
            CRC_MEMBER: npy(np.array([_checksums(part[channel]) for channel in channels], "<u4")),
            QUALITY_MEMBER: npy(np.array([night.quality[channel][begin:end] for channel in channels], np.uint8)),
            **{label_member(name): npy(labels[name][begin:end].astype(np.int8, copy=False)) for name in LABELS},
            **{channel_member(channel): npy(part[channel]) for channel in channels},
        }
        offsets = dict.fromkeys(MEMBERS, -1) | writer.write(f"{entry.record}_{number:04d}", members)
        segments.append([begin + 1, end - begin, *(offsets[member] for member in MEMBERS)])
    usable = {
        f"usable_{channel}": int(np.count_nonzero((night.quality[channel] & quality_mask) == 0)) if channel in channels else 0
        for channel in CHANNELS
    }
    record = {
        "record": entry.record,
        "subject": night.subject,
        "visit": night.visit,
        "cohort": night.cohort,
        "source": entry.path,
        "source_bytes": entry.size,
        "n_epochs": night.n_epochs,
        "n_segments": len(segments),
        "channels": channels,
        "rates": [recording.rate[channel] for channel in channels],
        "scored_epochs": int(np.count_nonzero(labels["stage"] >= 0)),
        "has_events": bool((labels["apnea"] >= 0).any()),
        **{f"epochs_{name}": int(np.count_nonzero(labels["stage"] == n)) for n, name in enumerate(STAGE_NAMES)},
        **{f"epochs_{name}": int(np.count_nonzero(labels[name] == 1)) for name in LABELS[1:]},
        **usable,
        "signals": {
            channel: {
                "median": night.median[channel],
                "iqr": night.iqr[channel],
                "clipped_samples": _clipped(steps[channel]),
            }
            for channel in channels
        },
        "provenance": night.provenance,
    }
    return Converted(record, segments)


def _clipped(steps: NDArray[np.int16]) -> int:
    # Nearly always none, which the extremes tell at once.
    if not len(steps) or (steps.max() < INT16_MAX and steps.min() > -INT16_MAX):
        return 0
    return int(np.count_nonzero(steps == INT16_MAX) + np.count_nonzero(steps == -INT16_MAX))


def _within(events: Sequence[Event], begin: int, end: int) -> list[dict[str, Any]]:
    """Those that touch the epochs from ``begin`` to before ``end``; one without duration is where it begins."""
    first, last = begin * EPOCH_SECONDS, end * EPOCH_SECONDS
    return [
        vars(event) for event in events if event.onset < last and max(event.onset + event.duration, event.onset + 1e-9) > first
    ]


def _checksums(epochs: NDArray[np.int16]) -> list[int]:
    return [zlib.crc32(epoch) for epoch in epochs]


def _header(recording: QuantisedRecording, entry: Entry, number: int, begin: int, end: int) -> bytes:
    """The sample's JSON: all a reader of the tar alone needs. Event times are seconds from the recording's start."""
    night, channels = recording.description, list(recording.steps)
    header = {
        "record": entry.record,
        "subject": night.subject,
        "visit": night.visit,
        "cohort": night.cohort,
        "segment": number,
        "first_epoch": begin + 1,
        "epochs": end - begin,
        "n_epochs": night.n_epochs,
        "channels": channels,
        "rate": {channel: recording.rate[channel] for channel in channels},
        "scale": {channel: CHANNEL_SCALE[channel] for channel in channels},
        "median": {channel: night.median[channel] for channel in channels},
        "iqr": {channel: night.iqr[channel] for channel in channels},
        "events": _within(night.events, begin, end),
        "unclear": _within(night.unclear, begin, end),
    }
    return json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
