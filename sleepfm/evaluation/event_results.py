"""Everything reported of one kind of events on one split: counts, figures at stated overlaps, and events per hour of sleep."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from sleepfm.data.dataset import Dataset
from sleepfm.data.mixture import Mixture
from sleepfm.evaluation import groups
from sleepfm.evaluation.event_figures import agreement_of_nights, event_metrics
from sleepfm.evaluation.events import EventAgreement
from sleepfm.evaluation.intervals import Metric
from sleepfm.evaluation.metrics import metrics_from, plain
from sleepfm.evaluation.paired import PairedAgreement
from sleepfm.evaluation.prediction_figures import compared_nights, index_agreement
from sleepfm.evaluation.predictions import Predictions


@dataclass(frozen=True)
class EventResult:
    """Found against scored events of ``kind``, over ``n_nights`` whose events were scored.

    ``located`` says whether events were told to the second; else runs of positive epochs do for them, which are no events.
    ``matches`` are counts at an overlap of 20 %, ``metrics`` those of :func:`sleepfm.evaluation.event_figures.event_metrics`,
    and ``index`` the events per hour of sleep by night. ``by_group`` has the counts of each group of people, where these are
    known; none in results of earlier versions.
    """

    kind: str
    located: bool
    threshold: float
    n_nights: int
    matches: EventAgreement
    metrics: dict[str, Metric]
    index: PairedAgreement
    by_group: groups.EventGroups = field(default_factory=dict)

    @classmethod
    def of(
        cls, data: Dataset | Mixture, kind: str, predictions: Predictions, threshold: float, resamples: int = 1000, seed: int = 0
    ) -> EventResult:
        """Of what ``predictions`` find from ``threshold`` on, which ``val`` chose."""
        nights = compared_nights(data, kind, predictions, threshold)
        return cls(
            kind=kind,
            located=predictions.seconds is not None,
            threshold=threshold,
            n_nights=len(nights),
            matches=agreement_of_nights(nights)[0],
            metrics=event_metrics(nights, resamples, seed),
            index=index_agreement(nights, kind, resamples, seed),
            by_group=groups.event_groups(data, nights),
        )

    def flat(self, split: str) -> dict[str, float]:
        """``split/figure`` of every figure that is defined, for trackers: of events, or of positive runs."""
        what = "event" if self.located else "positive_runs"
        figures = {f"{what}_{name}": metric.value for name, metric in self.metrics.items()}
        figures |= {
            f"{what}_f1": self.matches.f1,
            f"{what}_index_mae": self.index.mae.value,
            f"{what}_index_icc": self.index.icc.value,
        }
        return {f"{split}/{name}": value for name, value in figures.items() if not math.isnan(value)}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; nan becomes null."""
        return plain(asdict(self))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EventResult:
        """Inverse of :meth:`to_dict`."""
        parts = {
            "matches": EventAgreement(**values["matches"]),
            "metrics": metrics_from(values["metrics"]),
            "index": PairedAgreement.from_dict(values["index"]),
            "by_group": groups.events_from_dict(values.get("by_group", {})),
        }
        return cls(**{**values, **parts})
