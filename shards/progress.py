"""Progress of a build as plain lines, which survive logs, pipes and ``ray job logs``."""

from __future__ import annotations

import time

from shards.names import shown
from shards.task import Outcome, Refusal

SECONDS_BETWEEN_LINES = 3.0


class Progress:
    """Counts outcomes, prints a line every few seconds and every refusal as it comes."""

    def __init__(self, shards: int, recordings: int) -> None:
        self._shards = shards
        self._recordings = recordings
        self._started = time.monotonic()
        self._printed = self._started
        self._done = self._converted = 0
        self._hours = 0.0
        self.refusals: list[Refusal] = []

    def update(self, outcome: Outcome | None) -> None:
        """Take an outcome in (None: just time has passed) and print if it is time to."""
        if outcome is not None:
            self._done += 1
            self._converted += outcome.converted
            self._hours += outcome.hours
            for refusal in outcome.refusals:
                self.refusals.append(refusal)
                print(f"refused {shown(refusal.path)}: {refusal.error}: {refusal.reason}", flush=True)
        now = time.monotonic()
        if now - self._printed >= SECONDS_BETWEEN_LINES or self._done == self._shards:
            self._printed = now
            print(self._line(now - self._started), flush=True)

    def _line(self, seconds: float) -> str:
        recordings = self._converted + len(self.refusals)
        rate = recordings / seconds
        left = (self._recordings - recordings) / rate if rate else None
        remaining = "unknown" if left is None else f"{int(left) // 60}:{int(left) % 60:02d}"
        return (
            f"shards {self._done}/{self._shards}  recordings {recordings}/{self._recordings}  "
            f"{rate * 60:.1f} recordings/min  {self._hours / seconds * 60:.0f} h of signal/min  "
            f"refused {len(self.refusals)}  ETA {remaining}"
        )
