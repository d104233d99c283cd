"""What a data set holds, as a short table."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from shards.privacy import where_texts_are
from shards.summary import refusal_line
from sleepfm.constants import CHANNELS, EPOCH_SECONDS, RATE_HZ, SPLITS, STAGE_NAMES
from sleepfm.data.dataset import Dataset
from sleepfm.data.format import MANIFEST_FOLDER
from sleepfm.errors import ExcludedError
from sleepfm.signals.scorings.labels import describe_rule
from sleepfm.signals.scorings.text_counts import TextCounts
from sleepfm.wording import counted


def info(path: str | Path) -> str:
    """The text of ``python -m shards info`` for a folder or URL. Raises :class:`DatasetError` for what is no data set."""
    dataset = Dataset.open(path)
    description = dataset.description
    counts = description["counts"]
    quarantine = pq.read_table(dataset.path / MANIFEST_FOLDER / "quarantine.parquet").to_pandas()
    excluded = int((quarantine["error"] == ExcludedError.__name__).sum())
    lines = [
        dataset.origin,
        f"digest   {dataset.digest}",
        f"cohort   {dataset.config['cohort']}, samples of {dataset.segment_epochs} epochs",
        f"events   {describe_rule(dataset.config['event_rule'], dataset.config.get('event_rule_version', 1))}",
        f"holds    {counted(counts['records'], 'recording')}, {counts['epochs'] * EPOCH_SECONDS / 3600:.1f} h, "
        f"{counted(counts['shards'], 'shard')}, {counts['bytes'] / 1e6:.1f} MB; {len(quarantine) - excluded} refused"
        f"{f', {excluded} excluded' if excluded else ''}",
        "",
    ]
    records = pq.read_table(dataset.path / MANIFEST_FOLDER / "records.parquet").to_pandas()
    lines.append(_splits(description["split"], records))
    if len(records):
        lines += ["", _channels(records)]
    if known := dataset.people.lines():
        lines += ["", *(f"people   {line}" for line in known)]
    texts = TextCounts()
    for record, provenance in zip(records["source"], records["provenance"], strict=True):
        texts.add(record, json.loads(provenance))
    if found := texts.lines():
        lines += ["", *found]
    for row in quarantine.itertuples():
        word, told = refusal_line(row.source, row.error, row.reason).split(" ", 1)
        lines.append(f"{word:<8} {told}")
    if told := where_texts_are([*found, *quarantine["reason"]], "SRC"):
        lines.append(told)
    return "\n".join(lines)


def _splits(split: dict[str, dict[str, int]], records: pd.DataFrame) -> str:
    events = ("apnea", "hypopnea", "desaturation", "arousal")
    table = []
    for name in SPLITS:
        chosen = records[records["split"] == name]
        scored = max(int(chosen["scored_epochs"].sum()), 1)
        stages = {stage: f"{chosen[f'epochs_{stage}'].sum() / scored:.0%}" for stage in STAGE_NAMES}
        flagged = {event: int(chosen[f"epochs_{event}"].sum()) for event in events}
        table.append({"split": name, **split[name], "scored": int(chosen["scored_epochs"].sum()), **stages, **flagged})
    return pd.DataFrame(table).to_string(index=False)


def _channels(records: pd.DataFrame) -> str:
    present = Counter(channel for channels in records["channels"] for channel in channels)
    epochs = records["n_epochs"].sum()
    rates: dict[str, set[int]] = {channel: set() for channel in CHANNELS}
    # The first schema has no rates: it stored all at 100 Hz.
    for channels, of_channels in zip(records["channels"], records.get("rates", [None] * len(records)), strict=True):
        for number, channel in enumerate(channels):
            rates[channel].add(RATE_HZ if of_channels is None else int(of_channels[number]))
    table = [
        {
            "channel": channel,
            "Hz": ", ".join(map(str, sorted(rates[channel]))) or "-",
            "recordings": present[channel],
            "usable epochs": int(records[f"usable_{channel}"].sum()),
            "of all": f"{records[f'usable_{channel}'].sum() / epochs:.0%}",
        }
        for channel in CHANNELS
    ]
    return pd.DataFrame(table).to_string(index=False)
