"""A shard that is on its way to a store while it is still being made: what is written goes while the next recording is converted.

Nothing is there before the last part has arrived and the store is told to put them together. Where any of it fails, nothing is
lost: the whole shard is on the worker's disk and is uploaded from there.
"""

from __future__ import annotations

import hashlib
import logging
import re
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from shards.store import PART_BYTES, PARTS_AT_ONCE, Store, Upload
from sleepfm.errors import BusyError, ShardError
from sleepfm.files import temporaries

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.2


class EarlyUpload:
    """Follows ``file``, which is written from its beginning to its end under a temporary name beside its own.

    Exactly one of :meth:`arrive` and :meth:`give_up` is called at the end.
    """

    def __init__(self, store: Store, name: str, file: Path) -> None:
        self._store, self._name, self._path = store, name, file
        self._source: BinaryIO | None = None
        self._upload: Upload | None = None
        self._pool = ThreadPoolExecutor(PARTS_AT_ONCE, "part of an upload")
        self._under_way: deque[Future[None]] = deque()
        self._count = 0
        self._failed = False
        self._sent = hashlib.sha256()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="early upload", daemon=True)
        self._thread.start()

    def arrive(self, sha256: str) -> Upload | None:
        """Send what is left of the whole file; its upload, for which :func:`put_together` is still to be called, or None where it
        is to go from the disk.

        Args:
            sha256: of the whole file, which what was sent on the way must have as well.
        """
        self._stop()
        whole = False
        try:
            if self._upload is not None and not self._failed:
                self._send(self._path.stat().st_size)
                self._await(0)
                if self._sent.hexdigest() != sha256:
                    raise ShardError("its first bytes were changed after they had been written")
                whole = True
        except Exception as error:
            self._note(error)
        finally:
            self._close(discard=not whole)
        return self._upload if whole else None

    def give_up(self) -> None:
        """End without an object."""
        self._stop()
        self._close(discard=True)

    def _follow(self) -> None:
        while not self._end.wait(_POLL_SECONDS):
            try:
                self._send(self._written() // PART_BYTES * PART_BYTES)
            except Exception as error:
                self._note(error)
                return

    def _written(self) -> int:
        """Bytes of the file that are on the disk by now."""
        if self._source is None:
            found = temporaries(self._path.parent, re.escape(self._path.name))
            if not found:
                return 0
            self._source = found[0].open("rb")
        return Path(f"/proc/self/fd/{self._source.fileno()}").stat().st_size

    def _send(self, until: int) -> None:
        if self._source is None:
            return
        while (begin := self._source.tell()) < until:
            if self._upload is None:
                self._upload = self._store.begin(self._name)
            part = self._source.read(min(PART_BYTES, until - begin))
            self._sent.update(part)
            self._await(PARTS_AT_ONCE - 1)
            self._count += 1
            self._under_way.append(self._pool.submit(self._upload.send, self._count, part))

    def _await(self, most: int) -> None:
        """Until ``most`` parts are under way, so that no more of them are in memory. Raises what sending one did."""
        while len(self._under_way) > most:
            self._under_way.popleft().result()

    def _stop(self) -> None:
        self._end.set()
        self._thread.join()

    def _note(self, error: Exception) -> None:
        self._failed = True
        log.info("%s: goes once more from the disk (%s)", self._name, error)

    def _close(self, discard: bool) -> None:
        if self._source is not None:
            self._source.close()
        # A part that arrives after the others were dropped would stay.
        self._pool.shutdown(cancel_futures=True)
        if self._upload is not None and discard:
            _drop(self._upload, self._name)


def put_together(store: Store, name: str, upload: Upload, size: int, check: Callable[[], None]) -> bool:
    """Make the parts of ``upload``, of ``size`` bytes, the object ``name``, where nothing is; whether it is there now.

    Args:
        check: called before; raises :class:`BusyError` where nothing must be put.
    """
    done = False
    try:
        check()
        upload.commit()
        done = store.size(name) == size
    except BusyError:
        raise
    except Exception as error:
        # Whatever the client raises; who then puts the file from the disk meets, and tells, what lasts.
        log.info("%s: its parts were not put together (%s)", name, error)
    finally:
        if not done:
            _drop(upload, name)
    return done


def _drop(upload: Upload, name: str) -> None:
    try:
        upload.discard()
    except Exception as error:
        # Parts that nobody puts together are no object; the next build drops them.
        log.warning("%s: parts of an upload that broke off may stay in the store (%s)", name, error)
