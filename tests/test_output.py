"""Folders that are written whole: replaced by the same thing alone, and never with anything of somebody else's in them."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
from pathlib import Path

import pytest

from sleepfm.errors import StorageError
from sleepfm.output import MARKER, Origin, check_free, remove_unfinished, strangers, unfinished_folders, whole_folder

ORIGIN = Origin("scored night", "a" * 64, "a/night.edf")


def write(folder: Path, origin: Origin = ORIGIN, **files: str) -> None:
    with whole_folder(folder, origin) as new:
        assert list(new.iterdir()) == [new / MARKER]
        for name, text in (files or {"stages": "first"}).items():
            path = new / name.replace("__", "/")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)


def content(folder: Path) -> dict[str, str | None]:
    return {
        path.relative_to(folder).as_posix(): path.read_text() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if path.name != MARKER
    }


def test_the_same_thing_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "night"
    write(folder, stages="first", sub__events="first")
    with (
        pytest.raises(StorageError, match=rf"{re.escape(str(folder))}: cannot be written \(No space left on device\)"),
        whole_folder(folder, ORIGIN) as new,
    ):
        (new / "stages").write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert content(folder) == {"stages": "first", "sub": None, "sub/events": "first"}
    write(folder, stages="second")
    assert content(folder) == {"stages": "second"}
    assert list(folder.parent.iterdir()) == [folder]


def test_a_new_place_is_absent_or_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write(Path("."))
    assert content(tmp_path / "here") == {"stages": "first"}


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (
            Origin("scored night", "b" * 64, "b/night.edf"),
            "holds the scored night of a/night.edf, not the scored night of b/night",
        ),
        (Origin("converted package", "a" * 64, "a/night.edf"), "not the converted package of"),
    ],
)
def test_something_else_is_not_replaced(tmp_path: Path, other: Origin, said: str) -> None:
    write(tmp_path / "night")
    for attempt in (lambda: check_free(tmp_path / "night", other), lambda: write(tmp_path / "night", other)):
        with pytest.raises(StorageError, match=said):
            attempt()
    assert content(tmp_path / "night") == {"stages": "first"}


def place_file(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")


def edit(folder: Path) -> None:
    (folder / "stages").write_text("corrected by hand")


def place_folder(folder: Path) -> None:
    (folder / "mine").mkdir()


def place_link(folder: Path) -> None:
    (folder / "stages").unlink()
    (folder / "stages").symlink_to(folder.parent / "elsewhere")


def take_marker(folder: Path) -> None:
    (folder / MARKER).unlink()


def replace_marker(folder: Path) -> None:
    (folder / MARKER).write_text('{"kind": "scored night"}')


@pytest.mark.parametrize("change", [place_file, edit, place_folder, place_link, take_marker, replace_marker])
def test_what_somebody_put_there_or_changed_is_kept(tmp_path: Path, change) -> None:
    folder = tmp_path / "night"
    write(folder)
    (tmp_path / "elsewhere").write_text("mine")
    change(folder)
    before = content(tmp_path)
    with pytest.raises(StorageError, match=re.escape(str(folder))):
        write(folder, stages="second")
    assert content(tmp_path) == before


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.write_text("mine"), lambda path: path.symlink_to("elsewhere")])
def test_foreign_places_are_refused(tmp_path: Path, make) -> None:
    (tmp_path / "elsewhere").mkdir()
    write(tmp_path / "elsewhere" / "night")
    make(tmp_path / "night")
    if (tmp_path / "night").is_dir():
        (tmp_path / "night" / "night.edf").write_text("mine")
    before = content(tmp_path)
    with pytest.raises(StorageError, match=str(tmp_path / "night")):
        write(tmp_path / "night")
    assert content(tmp_path) == before


def test_what_comes_while_the_folder_is_written_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "night"
    write(folder)
    with pytest.raises(StorageError, match=r"notes\.txt"), whole_folder(folder, ORIGIN) as new:
        (new / "stages").write_text("second")
        place_file(folder)
    assert content(tmp_path) == {"night": None, "night/notes.txt": "mine", "night/stages": "first"}


def test_a_rename_that_fails_puts_back_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "night"
    write(folder)
    rename = Path.rename

    def fails(path: Path, target: Path) -> Path:
        if path.suffix == ".tmp" and target == folder:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(StorageError, match="Input/output error"):
        write(folder, stages="second")
    assert content(tmp_path) == {"night": None, "night/stages": "first"}


def test_only_what_a_kill_left_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "package"
    write(folder)
    writer = os.fork()
    if writer == 0:
        with whole_folder(folder, ORIGIN) as new:
            (new / "half").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(writer, 0)
    assert [(path / "half").exists() for path in unfinished_folders(tmp_path, "package")] == [True]
    aside = tmp_path / f".package.{'1' * 12}.old"
    shutil.copytree(folder, aside)
    (aside / "notes.txt").write_text("mine")
    mine = tmp_path / f".package.{'2' * 12}.tmp"
    mine.mkdir()
    (mine / "thesis.txt").write_text("mine")
    (tmp_path / ".package.mine.tmp").mkdir()
    for path in unfinished_folders(tmp_path, "package"):
        remove_unfinished(path)
    left = [folder, folder / MARKER, folder / "stages", aside, aside / "notes.txt", mine, mine / "thesis.txt"]
    assert set(tmp_path.rglob("*")) == {*left, tmp_path / ".package.mine.tmp"}
    assert strangers(folder) == []
