"""Files that are whole or absent."""

from __future__ import annotations

import resource
import signal
from pathlib import Path

import pytest
import torch

from sleepfm.errors import StorageError
from sleepfm.files import atomic_file, read_json, remove_temporaries, write_atomic, write_json
from sleepfm.registry.package import save_weights


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_json(tmp_path / "new" / "run.json", {"step": 3})
    assert read_json(tmp_path / "new" / "run.json") == {"step": 3}
    assert read_json(tmp_path / "none.json") is None


@pytest.mark.parametrize("what", ["a folder in its place", "a file for its folder"])
def test_a_file_that_cannot_be_written_is_named_and_leaves_nothing_behind(tmp_path: Path, what: str) -> None:
    path = tmp_path / "run.json" if what == "a folder in its place" else tmp_path / "file" / "run.json"
    (tmp_path / "run.json").mkdir()
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.rglob("*"))
    told = rf"{path}: cannot be written \(.+\); make room"
    if what == "a file for its folder":
        told = f"{path.parent}: a file of that name is in the way of a folder; move it away"
    with pytest.raises(StorageError, match=told):
        write_atomic(path, "{}")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_is_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(RuntimeError), atomic_file(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with atomic_file(path) as file:
        file.write(b"whole")
        assert not path.exists()
    with pytest.raises(RuntimeError), atomic_file(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"whole"
    kept = ("file", ".file.123.tmp", ".other.0123456789ab.tmp", ".x.tmp", ".file.0123456789ab.tmp.txt")
    for name in (*kept[1:], ".file.0123456789ab.tmp"):
        (tmp_path / name).write_bytes(b"only the last one was left by a killed writer of this name")
    remove_temporaries(tmp_path, "file")
    assert {item.name for item in tmp_path.iterdir()} == set(kept)


def test_weights_that_do_not_fit_on_the_disk_leave_the_ones_before(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_weights(path, {"weight": torch.zeros(2)})
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(StorageError, match=rf"{path}: cannot be written \(.*File too large"):
            save_weights(path, {"weight": torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
