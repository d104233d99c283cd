"""Copies of registered packages on a node: fetched once, whole or absent, bounded, and nobody else's files removed."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from mlflow_server import Server
from small_model import MODEL

from sleepfm.errors import BusyError, ConfigError, RegistryError
from sleepfm.lock import locked
from sleepfm.models.build import build_model, model_config
from sleepfm.registry import package_cache, registry
from sleepfm.registry.package import CONFIG, WEIGHTS, write_package
from sleepfm.registry.package_cache import KEPT_SECONDS, LIMIT_VARIABLE, cached_package
from sleepfm.registry.store import client, experiment_id

pytestmark = pytest.mark.timeout(1200)

ADDRESS = "models:/small/1"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A package, and the tags that its registered version has."""
    torch.manual_seed(3)
    module = build_model(MODEL)
    folder = tmp_path_factory.mktemp("package") / "whole"
    return folder, write_package(folder, module, {"model": model_config(module)}, "# card\n")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, package: tuple[Path, dict[str, str]]) -> Iterator[Server]:
    """A server that holds the package as ``models:/small/1`` and serves its files."""
    found = Server(tmp_path_factory.mktemp("server"))
    found.start()
    try:
        store = client(found.uri)
        run = store.create_run(experiment_id(store, found.uri, "test"))
        assert registry.register("small", package[0], run.info.run_id, package[1], {}, store=found.uri) == "1"
        yield found
    finally:
        found.kill()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of packages in a cache of this test."""
    monkeypatch.setenv("SLEEPFM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


def held(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir() if not path.name.startswith(".")}


class Copy:
    """A download from a folder; counts its calls."""

    def __init__(self, package: Path) -> None:
        self.package, self.calls = package, 0

    def __call__(self, folder: Path) -> Path:
        self.calls += 1
        return Path(shutil.copytree(self.package, folder / "below"))


def never(folder: Path) -> Path:
    raise AssertionError("it is in the cache")


@pytest.mark.slow
def test_processes_that_ask_at_once_fetch_once_and_load(server: Server, cache: Path) -> None:
    code = f"from sleepfm.registry import registry; registry.load({ADDRESS!r}, {server.uri!r})"
    before = server.log.count(f"{WEIGHTS} HTTP")
    asking = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [process.wait(600) for process in asking] == [0, 0, 0]
    assert server.log.count(f"{WEIGHTS} HTTP") == before + 1
    assert len(held(cache)) == 1


def test_what_was_fetched_needs_no_store_and_what_was_not_names_it(server: Server, cache: Path) -> None:
    entry = registry.look_up(ADDRESS, server.uri)
    path = registry.fetch(entry).path
    assert path.parent == cache and {file.name for file in path.iterdir()} >= {WEIGHTS, CONFIG}
    away = dataclasses.replace(entry, store="http://127.0.0.1:9")
    assert registry.fetch(away).path == path
    shutil.rmtree(path)
    with pytest.raises(
        RegistryError, match=r"models:/small/1: cannot fetch mlflow-artifacts:.*127\.0\.0\.1:9.*Connection refused"
    ):
        registry.fetch(away)
    assert held(cache) == set()


@pytest.mark.parametrize("file", [WEIGHTS, CONFIG])
def test_a_damaged_copy_is_fetched_again(package: tuple[Path, dict[str, str]], cache: Path, file: str) -> None:
    folder, tags = package
    path = cached_package("it", tags, Copy(folder))
    content = (path / file).read_bytes()
    (path / file).write_bytes(content[:-1] + b"x")
    again = Copy(folder)
    assert cached_package("it", tags, again) == path
    assert again.calls == 1 and (path / file).read_bytes() == content
    assert cached_package("it", tags, never) == path


def test_other_bytes_than_the_registered_are_refused_and_not_kept(package: tuple[Path, dict[str, str]], cache: Path) -> None:
    folder, tags = package
    with pytest.raises(RegistryError, match=rf"{WEIGHTS}: SHA-256 is [0-9a-f]{{12}}, but it states {tags['sha256'][:6]}"):
        cached_package("it", tags, Copy(changed(folder, cache.parent.parent)))
    assert held(cache) == set()
    with pytest.raises(RegistryError, match="registered without digests"):
        cached_package("it", {}, never)


def changed(package: Path, where: Path) -> Path:
    other = Path(shutil.copytree(package, where / "changed"))
    with (other / WEIGHTS).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        byte = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([byte[0] ^ 1]))
    return other


def test_a_killed_fetch_leaves_nothing_that_stays(package: tuple[Path, dict[str, str]], cache: Path) -> None:
    folder, tags = package
    code = f"""
import os, shutil, signal
from pathlib import Path
from sleepfm.registry.package_cache import cached_package
def download(folder):
    shutil.copy({str(folder / WEIGHTS)!r}, folder)
    os.kill(os.getpid(), signal.SIGKILL)
cached_package("it", {tags!r}, download)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert [name.endswith(".part") for name in held(cache)] == [True]
    path = cached_package("it", tags, Copy(folder))
    assert held(cache) == {path.name}


def test_room_is_made_from_what_was_asked_for_longest_ago_and_nothing_else(
    package: tuple[Path, dict[str, str]], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, tags = package

    def another(number: int) -> tuple[Path, Mapping[str, str]]:
        config = {"model": MODEL, "note": number}
        target = tmp_path / f"another{number}"
        return target, write_package(target, folder / WEIGHTS, config, "card")

    made = [another(number) for number in range(4)]
    size = sum(file.stat().st_size for file in folder.iterdir())
    monkeypatch.setenv(LIMIT_VARIABLE, str(2.5 * size / 2**30))
    first, second, third = (cached_package("it", tags, Copy(source)) for source, tags in made[:3])
    # All were asked for today.
    assert held(cache) == {first.name, second.name, third.name}
    for age, path in enumerate((third, first, second)):
        os.utime(path, times=(time.time() - KEPT_SECONDS - 100 + age,) * 2)
    (cache / "notes").mkdir()
    (cache / "notes" / "mine").write_text("kept")
    # Asking is using.
    assert cached_package("it", made[2][1], never) == third
    fourth = cached_package("it", made[3][1], Copy(made[3][0]))
    assert held(cache) == {third.name, fourth.name, "notes"}
    monkeypatch.setenv(LIMIT_VARIABLE, "none")
    with pytest.raises(ConfigError, match=LIMIT_VARIABLE):
        cached_package("it", tags, never)


def test_a_folder_of_somebody_else_is_refused(package: tuple[Path, dict[str, str]], cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / "theirs").write_text("x")
    with pytest.raises(RegistryError, match="did not write"):
        cached_package("it", package[1], Copy(package[0]))
    assert [path.name for path in cache.iterdir()] == ["theirs"]
    shutil.rmtree(cache)
    cache.write_text("x")
    with pytest.raises(RegistryError, match=r"cannot keep it here \(.*\); make room, or set SLEEPFM_CACHE"):
        cached_package("it", package[1], Copy(package[0]))


def test_waiting_for_another_process_ends(
    package: tuple[Path, dict[str, str]], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached_package("it", package[1], Copy(package[0]))
    monkeypatch.setattr(package_cache, "_PATIENCE_SECONDS", 0.3)
    with locked(cache / ".lock", 1.0):
        assert cached_package("it", package[1], never)
        with pytest.raises(BusyError, match=r"\.lock: another process has held"):
            cached_package("it", dict.fromkeys(package[1], "f" * 64), never)
