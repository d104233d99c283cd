"""Progress of a build as plain lines, which survive logs, pipes and ``ray job logs``."""

from __future__ import annotations

import time

from shards.names import shown
from shards.schedule import News
from shards.summary import refusal_line
from shards.task import Outcome
from sleepfm.errors import ExcludedError
from sleepfm.wording import counted

SECONDS_BETWEEN_LINES = 3.0
_SECONDS_OF_SILENCE = 60.0


class Progress:
    """Counts what became of shards, and prints every refusal and failure as it comes, and where the build stands.

    That line comes every few seconds while something moves; where nothing does, once a minute, with for how long.

    ``refused`` holds the paths whose refusal, or exclusion, was printed.
    """

    def __init__(self, shards: int, recordings: int) -> None:
        self._shards = shards
        self._recordings = recordings
        self._started = time.monotonic()
        self._printed = self._moved = self._started
        self._done = self._converted = self._failed = self._lost = self._excluded = 0
        self._hours = 0.0
        self.refused: set[str] = set()
        self._told = self._counts

    def update(self, news: News) -> None:
        """Take news of a shard (None: just time has passed) and print if it is time to."""
        if isinstance(news, str):
            print(news, flush=True)
        elif isinstance(news, Outcome):
            self._done += 1
            self._converted += news.converted
            self._hours += news.hours
            for refusal in news.refusals:
                self.refused.add(shown(refusal.path))
                self._excluded += refusal.error == ExcludedError.__name__
                print(refusal_line(shown(refusal.path), refusal.error, refusal.reason), flush=True)
        elif news is not None:
            self._failed += 1
            self._lost += len(news.recordings)
            names = ", ".join(shown(path) for path in news.recordings)
            cause = "; ".join(line.strip() for line in news.reason.strip().splitlines()[-2:])
            print(f"failed {news.shard} ({names}): {cause}", flush=True)
        now = time.monotonic()
        over = self._done + self._failed == self._shards and news is not None and not isinstance(news, str)
        if self._counts != self._told:
            if over or now - self._printed >= SECONDS_BETWEEN_LINES:
                self._printed = self._moved = now
                self._told = self._counts
                print(self._line(now - self._started), flush=True)
        elif now - self._printed >= _SECONDS_OF_SILENCE:
            self._printed = now
            left = self._shards - self._done - self._failed
            print(f"working: no shard finished for {_clock(now - self._moved)}, {left} are left", flush=True)

    @property
    def _counts(self) -> tuple[int, ...]:
        """What is told, as far as it does not change by itself."""
        return self._done, self._failed, self._converted, len(self.refused)

    def _line(self, seconds: float) -> str:
        recordings = self._converted + len(self.refused)
        rate = recordings / seconds
        left = (self._recordings - recordings - self._lost) / rate if rate else None
        return (
            f"shards {self._done}/{self._shards}  recordings {recordings}/{self._recordings}  "
            f"{rate * 60:.1f} recordings/min  {self._hours / seconds * 60:.0f} h of signal/min  "
            f"refused {len(self.refused) - self._excluded}  failed {counted(self._failed, 'shard')}  ETA {_clock(left)}"
        )


class ListingProgress:
    """A line every few seconds while ``source`` is listed and its files are looked at."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._printed = time.monotonic()
        self._told = ("", -1)

    def update(self, what: str, files: int) -> None:
        """So many ``files`` are ``what``."""
        now = time.monotonic()
        if now - self._printed >= SECONDS_BETWEEN_LINES and (what, files) != self._told:
            self._printed, self._told = now, (what, files)
            print(f"{self._source}: {counted(files, 'recording')} {what}", flush=True)


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
