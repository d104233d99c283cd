"""Shards that are on their way while they are made: there whole at the end, or not at all, or from the disk."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from shards.early_upload import EarlyUpload, put_together
from shards.store import PART_BYTES, Store
from sleepfm.errors import BusyError
from sleepfm.files import atomic_file
from sleepfm.signals.files import location

CONTENT = os.urandom(3 * PART_BYTES + 12_345)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def allowed() -> None:
    pass


def begin(s3, tmp_path: Path, name: str) -> EarlyUpload:
    """An upload of which parts have arrived when the file is whole."""
    file = tmp_path / "shard.tar"
    early = EarlyUpload(Store(location(f"s3://sleep/early-{name}")), "shard.tar", file)
    with atomic_file(file) as target:
        for start in range(0, len(CONTENT), PART_BYTES):
            target.write(CONTENT[start : start + PART_BYTES])
            target.flush()
            deadline = time.monotonic() + 60
            while start and not s3.unfinished_uploads():
                assert time.monotonic() < deadline, "nothing is on its way"
                time.sleep(0.05)
    assert s3.names(f"early-{name}") == []
    return early


def finish(early: EarlyUpload, sha256: str, check: Callable[[], None]) -> bool:
    """Send what is left and have it put together, as a task does; whether the file is in the store now."""
    upload = early.arrive(sha256)
    return upload is not None and put_together(early._store, early._name, upload, len(CONTENT), check)


def test_it_is_there_when_it_is_whole(s3, tmp_path):
    assert finish(begin(s3, tmp_path, "whole"), SHA256, allowed)
    assert s3.contents("early-whole") == {"shard.tar": CONTENT}
    assert s3.unfinished_uploads() == []


def test_nothing_is_left_of_one_that_is_given_up_or_must_not_be(s3, tmp_path):
    begin(s3, tmp_path, "given-up").give_up()

    def lost() -> None:
        raise BusyError("another builder")

    with pytest.raises(BusyError):
        finish(begin(s3, tmp_path, "lost"), SHA256, lost)
    assert s3.names("early-given-up") == s3.names("early-lost") == s3.unfinished_uploads() == []


def test_what_another_has_put_meanwhile_stays(s3, tmp_path):
    early = begin(s3, tmp_path, "other")
    s3.put("early-other/shard.tar", b"of another")
    assert not finish(early, SHA256, allowed)
    assert s3.contents("early-other") == {"shard.tar": b"of another"}
    assert s3.unfinished_uploads() == []


def test_bytes_that_changed_after_they_were_sent_are_not_put_together(s3, tmp_path):
    early = begin(s3, tmp_path, "changed")
    with (tmp_path / "shard.tar").open("r+b") as file:
        file.write(b"another beginning")
    assert not finish(early, hashlib.sha256((tmp_path / "shard.tar").read_bytes()).hexdigest(), allowed)
    assert s3.names("early-changed") == s3.unfinished_uploads() == []


@pytest.mark.slow
def test_a_store_that_takes_no_parts_leaves_it_to_the_upload_of_the_whole(s3, tmp_path):
    early = begin(s3, tmp_path, "faulty")
    with s3.faults(errors=1.0):
        assert not finish(early, SHA256, allowed)
    assert s3.names("early-faulty") == []


def test_a_small_file_is_not_begun(s3, tmp_path):
    file = tmp_path / "small.tar"
    early = EarlyUpload(Store(location("s3://sleep/early-small")), "small.tar", file)
    file.write_bytes(b"small")
    time.sleep(0.5)
    assert not finish(early, hashlib.sha256(b"small").hexdigest(), allowed)
    assert s3.names("early-small") == []
