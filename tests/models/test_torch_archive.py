"""Files of ``torch.save`` as data: nothing in them runs, whatever they hold."""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import pathlib
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sleepfm.errors import CheckpointError
from sleepfm.models.reference.torch_archive import Unknown, read_archive


def same(found: Any, expected: Any) -> bool:
    if isinstance(expected, torch.Tensor):
        return found.dtype == expected.dtype and torch.equal(found, expected)
    if isinstance(expected, dict):
        return list(found) == list(expected) and all(same(found[key], value) for key, value in expected.items())
    if isinstance(expected, (list, tuple)):
        return type(found) is type(expected) and all(same(a, b) for a, b in zip(found, expected, strict=True))
    return bool(found == expected)


def content() -> dict[str, Any]:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.BatchNorm1d(3))
    big = torch.arange(24.0).reshape(4, 6)
    return {
        "state": module.state_dict(),
        "views": [big[1:3], big.T, big[:, ::2], big[0, 0]],
        "types": [torch.ones(2, dtype=t) for t in (torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)],
        "empty": torch.empty(0, 3),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "plain": {"text": "ä" * 300, "numbers": [1, -1, 2**40, 1e-3, True, None], "tuple": (1, (2,), (3, 4, 5, 6))},
        "hyper": argparse.Namespace(lr=0.1, names=["EEG"]).__dict__,
        "ordered": collections.OrderedDict(a=1),
    }


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_it_reads_what_torch_writes(tmp_path: Path, protocol: int) -> None:
    torch.save(content(), tmp_path / "a.pth", pickle_protocol=protocol)
    assert same(read_archive(tmp_path / "a.pth"), content())


def test_objects_of_other_types_are_inert(tmp_path: Path) -> None:
    values = {"scalars": [np.float64(1.5), np.int64(2)], "path": pathlib.PurePosixPath("/a"), "set": {1, 2}, "ok": 1}
    torch.save(values, tmp_path / "a.pth")
    found = read_archive(tmp_path / "a.pth")
    assert found["ok"] == 1
    assert isinstance(found["path"], Unknown)
    assert found["path"].name == "pathlib.PurePosixPath"


class Hostile:
    """Unpickling an instance calls ``call(*arguments)``."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call, self.arguments


def archive(path: Path, description: bytes, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", description)
        file.writestr("a/byteorder", b"little")
        for name, data in members.items():
            file.writestr(f"a/data/{name}", data)
    return path


def test_hostile_descriptions_never_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    command = f"touch {marker}"
    attacks: list[Any] = [
        Hostile(os.system, command),
        Hostile(eval, f"open({str(marker)!r}, 'w')"),
        Hostile(exec, f"open({str(marker)!r}, 'w')"),
        Hostile(pathlib.Path.touch, marker),
        Hostile(getattr, Hostile(__import__, "os"), "system"),
        {"model_state": {"weight": Hostile(os.system, command)}},
    ]
    for number, attack in enumerate(attacks):
        for protocol in range(6):
            description = pickle.dumps(attack, protocol)
            path = archive(tmp_path / f"{number}-{protocol}.pth", description)
            with contextlib.suppress(CheckpointError):
                read_archive(path)
            assert not marker.exists(), (number, protocol)
    pickle.loads(pickle.dumps(attacks[0]))
    assert marker.exists(), "the attack is a real one"


def test_any_bytes_give_an_object_or_a_checkpoint_error(tmp_path: Path) -> None:
    """Descriptions and whole files with bytes changed, cut, doubled: no other error and no other effect."""
    torch.save(content(), tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as file:
        description = file.read("a/data.pkl")
        storages = {name.split("/")[-1]: file.read(name) for name in file.namelist() if "/data/" in name}
    whole = (tmp_path / "a.pth").read_bytes()
    chance = random.Random(1)

    def damaged(data: bytes) -> bytes:
        changed = bytearray(data)
        for _ in range(chance.randint(1, 4)):
            place = chance.randrange(len(changed))
            kind = chance.randrange(3)
            if kind == 0:
                changed[place] = chance.randrange(256)
            elif kind == 1:
                del changed[place : place + chance.randint(1, 40)]
            else:
                changed[place:place] = changed[chance.randrange(len(changed)) :][: chance.randint(1, 40)]
        return bytes(changed)

    outcomes = collections.Counter[str]()
    for trial in range(600):
        path = tmp_path / "b.pth"
        if trial % 2:
            archive(path, damaged(description), **storages)
        else:
            path.write_bytes(damaged(whole))
        try:
            read_archive(path)
            outcomes["read"] += 1
        except CheckpointError as error:
            assert str(path) in str(error)
            outcomes["refused"] += 1
    assert outcomes["refused"] > 100
    assert outcomes["read"] > 10


def described(*shape_offset_stride: Any, length: int = 4) -> bytes:
    """A description of one tensor in storage 0 of ``length`` fp32 numbers."""
    shape, offset, stride = shape_offset_stride

    class Stored:
        def __reduce__(self) -> tuple[Any, ...]:
            return torch._utils._rebuild_tensor_v2, (reference, offset, shape, stride, False, collections.OrderedDict())

    reference = object()

    class Writer(pickle._Pickler):  # type: ignore[misc, name-defined]
        def persistent_id(self, value: Any) -> Any:
            return ("storage", torch.FloatStorage, "0", "cpu", length) if value is reference else None

    import io

    buffer = io.BytesIO()
    Writer(buffer, 2).dump(Stored())
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("shape", "offset", "stride", "length"),
    [
        ((5,), 0, (1,), 4),
        ((4,), 1, (1,), 4),
        ((2, 2), 0, (3, 1), 4),
        ((1000, 1000), 0, (0, 0), 4),
        ((2,), 0, (-1,), 4),
        ((2,), -1, (1,), 4),
        ((2, 2), 0, (1,), 4),
        ((2,), 0, (1,), 10**12),
        (("2",), 0, (1,), 4),
    ],
)
def test_tensors_outside_their_storage_are_refused(tmp_path: Path, shape: Any, offset: int, stride: Any, length: int) -> None:
    numbers = struct.pack("<4f", 1, 2, 3, 4)
    good = archive(tmp_path / "good.pth", described((2, 2), 0, (2, 1)), **{"0": numbers})
    assert read_archive(good).tolist() == [[1, 2], [3, 4]]
    bad = archive(tmp_path / "bad.pth", described(shape, offset, stride, length=length), **{"0": numbers})
    with pytest.raises(CheckpointError, match="is inconsistent"):
        read_archive(bad)


def test_deep_nesting_ends_in_an_error_or_an_object(tmp_path: Path) -> None:
    nested = b"\x80\x02" + b"(" * 50_000 + b"t" * 50_000 + b"."
    with contextlib.suppress(CheckpointError):
        read_archive(archive(tmp_path / "deep.pth", nested))


def test_other_files_are_refused_with_their_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"absent\.pth: cannot be read"):
        read_archive(tmp_path / "absent.pth")
    (tmp_path / "old.pth").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(CheckpointError, match=r"old.pth: not a PyTorch checkpoint \(file of torch.save"):
        read_archive(tmp_path / "old.pth")
    with zipfile.ZipFile(tmp_path / "zip.pth", "w") as file:
        file.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match=r"no data\.pkl"):
        read_archive(tmp_path / "zip.pth")
    with zipfile.ZipFile(tmp_path / "packed.pth", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/data.pkl", pickle.dumps({}))
    with pytest.raises(CheckpointError, match="compressed"):
        read_archive(tmp_path / "packed.pth")
