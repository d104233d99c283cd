"""Fit ``statistics.yaml`` to scored nights: ``python -m sleepfm.synthetic.fit DREEM SLPDB``.

``DREEM`` holds ``scorers/{dodh,dodo}/scorer_*/<night>.json`` (Dreem Open Datasets, one integer a 30-s epoch),
``SLPDB`` holds ``*.an`` (MIT-BIH Polysomnographic Database, ``rdann`` text). Prints the fitted part of the
file.
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from sleepfm.console import exit_with
from sleepfm.constants import STAGE_NAMES, Stage
from sleepfm.errors import UsageError

EPOCHS_PER_MINUTE = 2
# REM epochs closer than this are one REM period (Feinberg and Floyd 1979: a NREM period lasts at least 15
# min).
REM_GAP = 15 * EPOCHS_PER_MINUTE
REM_MINIMUM = 2 * EPOCHS_PER_MINUTE
CYCLES = 4
QUANTILES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0)

SLPDB_STAGE = {"W": "W", "1": "N1", "2": "N2", "3": "N3", "4": "N3", "R": "REM"}
SLPDB_EVENT = {
    "OA": ("obstructive_apnea", False),
    "X": ("obstructive_apnea", True),
    "CA": ("central_apnea", False),
    "CAA": ("central_apnea", True),
    "H": ("hypopnea", False),
    "HA": ("hypopnea", True),
}


def consensus(nights: Sequence[Sequence[int]]) -> NDArray[np.int8]:
    """Majority stage [E] of several scorers (the lowest code among ties), -1 where most did not score."""
    length = min(len(night) for night in nights)
    votes = np.stack([np.asarray(night[:length]) for night in nights])
    counts = np.stack([(votes == code).sum(axis=0) for code in range(-1, len(STAGE_NAMES))])
    return (counts.argmax(axis=0) - 1).astype(np.int8)


def dreem_nights(folder: Path) -> Iterator[NDArray[np.int8]]:
    """Consensus hypnograms of DOD-H and DOD-O, in order of name."""
    for group in ("dodh", "dodo"):
        scorers = sorted((folder / "scorers" / group).glob("scorer_*"))
        if not scorers:
            raise UsageError(f"{folder}: no scorers/{group}/scorer_*; give the folder of the Dreem hypnograms")
        for name in sorted(path.name for path in scorers[0].glob("*.json")):
            yield consensus([json.loads((scorer / name).read_text()) for scorer in scorers])


def rem_periods(stages: NDArray[np.int8]) -> list[tuple[int, int]]:
    """Half-open epoch ranges of REM periods: REM epochs joined over gaps of less than 15 min, at least 2 min.
    Half-open epoch ranges of REM periods: REM epochs joined over gaps of less than 15 min, at least 2 min."""
    periods: list[tuple[int, int]] = []
    for epoch in np.flatnonzero(stages == Stage.REM).tolist():
        if periods and epoch - periods[-1][1] < REM_GAP:
            periods[-1] = (periods[-1][0], epoch + 1)
        else:
            periods.append((epoch, epoch + 1))
    return [period for period in periods if period[1] - period[0] >= REM_MINIMUM]


def fit_hypnograms(nights: Sequence[NDArray[np.int8]]) -> dict[str, object]:
    """Latency, NREM and REM period lengths by cycle, and per kind of period the jumps and dwell times of
    stages."""
    latencies: list[float] = []
    lengths: dict[str, list[list[float]]] = {kind: [[] for _ in range(CYCLES)] for kind in ("nrem", "rem")}
    jumps: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
    dwells: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    shares: Counter[str] = Counter()
    for night in nights:
        asleep = np.flatnonzero(night > Stage.W)
        onset, end = int(asleep[0]), int(asleep[-1]) + 1
        latencies.append(max(onset, 1) / EPOCHS_PER_MINUTE)
        shares.update(STAGE_NAMES[code] for code in night[onset:end] if code >= 0)
        cursor = onset
        for cycle, (start, stop) in enumerate(rem_periods(night)):
            slot = min(cycle, CYCLES - 1)
            lengths["nrem"][slot].append((start - cursor) / EPOCHS_PER_MINUTE)
            lengths["rem"][slot].append((stop - start) / EPOCHS_PER_MINUTE)
            _count(night[cursor:start], nrem_phase((cursor + start) / 2, onset, end), jumps, dwells)
            _count(night[start:stop], "rem", jumps, dwells)
            cursor = stop
        _count(night[cursor:end], nrem_phase((cursor + end) / 2, onset, end), jumps, dwells)
    total = sum(shares.values())
    return {
        "latency_minutes": _lognormal(latencies),
        "nrem_minutes": [_lognormal(values) for values in lengths["nrem"]],
        "rem_minutes": [_lognormal(values) for values in lengths["rem"]],
        "dwell_quantiles": list(QUANTILES),
        "shares": {name: round(shares[name] / total, 3) for name in STAGE_NAMES},
        "phases": {
            phase: {
                "jumps": _rows(jumps[phase]),
                "dwell_epochs": {
                    stage: [round(float(value), 1) for value in np.quantile(dwells[phase][stage], QUANTILES)]
                    for stage in STAGE_NAMES
                    if dwells[phase][stage]
                },
            }
            for phase in ("nrem_early", "nrem_middle", "nrem_late", "rem")
        },
    }


def nrem_phase(epoch: float, onset: float, end: float) -> str:
    """Which third of the sleep period ``epoch`` lies in, as the name of a NREM phase."""
    third = int(3 * (epoch - onset) / max(end - onset, 1))
    return ("nrem_early", "nrem_middle", "nrem_late")[min(max(third, 0), 2)]


def fit_events(records: Sequence[Path]) -> dict[str, object]:
    """Event rates by stage (per hour), severity spread over records, mix of types, and how often arousal
    follows."""
    minutes: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    aroused: Counter[str] = Counter()
    indices: list[float] = []
    for record in records:
        own = asleep = 0
        for line in record.read_text().splitlines()[1:]:
            codes = line.split()[6:]
            stage = SLPDB_STAGE.get(codes[0]) if codes else None
            if stage is None:
                continue
            minutes[stage] += 1
            events = [SLPDB_EVENT[code] for code in codes[1:] if code in SLPDB_EVENT]
            counts[stage] += len(events)
            own += len(events) * (stage != "W")
            asleep += stage != "W"
            kinds.update(kind for kind, _ in events)
            aroused.update(kind for kind, arousal in events if arousal)
        indices.append(own / (asleep / 120))
    return {
        "rate_per_hour": {name: round(120 * counts[name] / minutes[name], 1) for name in STAGE_NAMES},
        "index_per_hour": _lognormal(indices),
        "kinds": {kind: round(count / sum(kinds.values()), 3) for kind, count in sorted(kinds.items())},
        "arousal_probability": {kind: round(aroused[kind] / kinds[kind], 2) for kind in sorted(kinds)},
    }


def _count(
    stages: NDArray[np.int8],
    phase: str,
    jumps: dict[str, Counter[tuple[str, str]]],
    dwells: dict[str, dict[str, list[int]]],
) -> None:
    # The few REM epochs outside a REM period, and N3 inside one, are left out: they have too few runs to fit.
    ignored = {Stage.UNSCORED, Stage.N3 if phase == "rem" else Stage.REM}
    kept = [code for code in stages.tolist() if code not in ignored]
    runs = [(STAGE_NAMES[code], sum(1 for _ in run)) for code, run in groupby(kept)]
    for stage, length in runs:
        dwells[phase][stage].append(length)
    jumps[phase].update((a, b) for (a, _), (b, _) in pairwise(runs))


def _rows(pairs: Counter[tuple[str, str]]) -> dict[str, list[float]]:
    rows = {}
    for stage in STAGE_NAMES:
        total = sum(pairs[stage, other] for other in STAGE_NAMES)
        if total:
            rows[stage] = [round(pairs[stage, other] / total, 3) for other in STAGE_NAMES]
    return rows


def _lognormal(values: Sequence[float]) -> dict[str, float]:
    logs = np.log(np.maximum(values, 0.5))
    return {"median": round(float(np.exp(np.median(logs))), 1), "log_sd": round(float(logs.std()), 2)}


def fit(dreem: Path, slpdb: Path) -> dict[str, object]:
    """Both fits. Raises :class:`UsageError` for a folder without the files."""
    records = sorted(slpdb.glob("*.an"))
    if not records:
        raise UsageError(f"{slpdb}: no *.an; give the folder of the MIT-BIH Polysomnographic Database annotations")
    return {"hypnogram": fit_hypnograms(list(dreem_nights(dreem))), "respiration": fit_events(records)}


def main(argv: Sequence[str]) -> int:
    """Print the fitted statistics of the two folders as YAML."""
    if len(argv) != 2:
        raise UsageError("usage: python -m sleepfm.synthetic.fit DREEM_DIR SLPDB_DIR")
    print(yaml.safe_dump(fit(Path(argv[0]), Path(argv[1])), sort_keys=False, default_flow_style=None, width=110))
    return 0


if __name__ == "__main__":
    sys.exit(exit_with(lambda: main(sys.argv[1:])))
