"""Epochs of channels as models take them, 100 Hz and float32, from what is stored of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sleepfm.constants import EPOCH_SAMPLES, EPOCH_SECONDS, RATE_HZ
from sleepfm.data.dataset import Dataset
from sleepfm.data.format import CHANNEL_SCALE, INT16_MAX, SAMPLE_BYTES, epoch_bytes
from sleepfm.data.quantisation import dequantise, quantise, scales_of
from sleepfm.data.ranges import Index
from sleepfm.data.reader import ShardReader
from sleepfm.data.runs import plan_runs
from sleepfm.signals.rates import HELD_HZ, SLOW_HZ, hold, interpolate, thin_out

# Epochs that are interpolated at once, so that the products stay in the processor's cache.
_AT_ONCE = 16


def read_signals(
    dataset: Dataset,
    reader: ShardReader,
    record: Index,
    channel: Index,
    first: Index,
    count: Index,
    row: Index,
    out: NDArray[np.float32],
) -> NDArray[np.bool_]:
    """The epochs ``first .. first + count`` of (record, channel) into the rows of ``out`` [rows, 3000] from ``row`` on.

    What an epoch at a low rate needs of its neighbours is read with it, so that its values are the same in every request that
    holds it.

    Args:
        record, channel, first, count, row: [N] each; ``channel`` indexes :data:`CHANNELS` and must be present in the record.

    Returns:
        Which requests are intact, neighbours included, [N]; the rows of the others hold anything.
    """
    rate = dataset.rate[record, channel]
    wide = rate == SLOW_HZ
    begin = first - (wide & (first > 0))
    end = np.minimum(first + count + wide, dataset.n_epochs[record])
    values = (end - begin) * (epoch_bytes(rate) // SAMPLE_BYTES)
    ends = np.cumsum(values)
    place = ends - values
    stored = np.empty(int(ends[-1]) if len(ends) else 0, np.int16)
    runs = plan_runs(dataset, record, channel, begin, end - begin, place)
    run_intact = reader.read_epochs(runs, stored)
    intact = np.ones(len(record), np.bool_)
    intact[runs.request[~run_intact]] = False
    scale = scales_of(channel)
    full = rate == RATE_HZ
    if full.all() and np.array_equal(row, place // EPOCH_SAMPLES) and len(stored) == out.size:
        np.multiply(stored.reshape(-1, EPOCH_SAMPLES), np.repeat(scale, count)[:, None], out=out, dtype=np.float32)
        return intact
    slow = []
    for number, (at, size, to, epochs) in enumerate(
        zip(place.tolist(), values.tolist(), row.tolist(), count.tolist(), strict=True)
    ):
        if wide[number]:
            slow.append(number)
            continue
        steps = stored[at : at + size].reshape(epochs, -1)
        if not full[number]:
            steps = hold(steps, int(rate[number]))
        np.multiply(steps, scale[number], out=out[to : to + epochs], dtype=np.float32)
    sides = (begin < first) + 2 * (end > first + count)
    for group in _groups(slow, count):
        fine = interpolate([(stored[place[n] : place[n] + values[n]], int(sides[n])) for n in group])
        done = 0
        for number in group:
            epochs, to = int(count[number]), int(row[number])
            _scale(fine[done : done + epochs], scale[number], out[to : to + epochs])
            done += epochs
    return intact


def _groups(numbers: list[int], count: Index) -> list[list[int]]:
    """``numbers`` of requests in order, together some epochs each."""
    groups: list[list[int]] = []
    room = 0
    for number in numbers:
        if room <= 0:
            groups.append([])
            room = _AT_ONCE
        groups[-1].append(number)
        room -= int(count[number])
    return groups


def _scale(steps: NDArray[np.float64], scale: np.float32, out: NDArray[np.float32]) -> None:
    # Between clipped samples the interpolation may go beyond what can be stored.
    np.clip(steps, -INT16_MAX, INT16_MAX, out=steps)
    np.multiply(steps, np.float64(scale), out=out, casting="same_kind")


def stored_and_read(channel: str, samples: NDArray[np.float32], rate: int, begin: int, end: int) -> NDArray[np.float32]:
    """Epochs [E, 3000] of a night [n_epochs * 3000], ``begin .. end``, as they would come from shards at ``rate``."""
    epochs = len(samples) // EPOCH_SAMPLES
    before, after = (int(begin > 0), int(end < epochs)) if rate == SLOW_HZ else (0, 0)
    part = samples[(begin - before) * EPOCH_SAMPLES : (end + after) * EPOCH_SAMPLES]
    steps = quantise(channel, thin_out(part, rate)).reshape(-1, rate * EPOCH_SECONDS)
    if rate == SLOW_HZ:
        result = np.empty((end - begin, EPOCH_SAMPLES), np.float32)
        _scale(interpolate([(steps, before + 2 * after)]), np.float32(CHANNEL_SCALE[channel]), result)
        return result
    return dequantise(channel, hold(steps, rate) if rate == HELD_HZ else steps)
