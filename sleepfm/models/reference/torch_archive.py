"""Tensors out of a ``torch.save`` file without unpickling it.

The file is a zip archive: ``data.pkl`` describes the saved object, ``data/N`` holds the bytes of storage ``N``. Unpickling runs
whatever callable the description names. Here a small interpreter reads the description as data: it builds dictionaries, lists,
tuples, numbers, text and tensors, and everything else becomes an inert :class:`Unknown`. Nothing is imported or called by name.
"""

from __future__ import annotations

import pickletools
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sleepfm.errors import CheckpointError

DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


@dataclass(frozen=True)
class Unknown:
    """An object of a type that is not rebuilt; ``name`` is its type or function."""

    name: str


@dataclass(frozen=True)
class _Name:
    name: str


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: torch.dtype
    length: int


class _Mark:
    """Start of a group of stack entries."""


def read_archive(path: str | Path) -> Any:
    """The object in the ``torch.save`` file at ``path``, of plain containers, scalars and tensors (on the CPU).

    Raises:
        CheckpointError: not such a file, damaged, or a description that does not hold together.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return _Archive(path, archive).read()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError, struct.error) as error:
        # All of what the zip reader raises on damaged directories.
        raise CheckpointError(
            f"{path}: not a PyTorch checkpoint (file of torch.save, version 1.6 or later), or damaged ({error})"
        ) from error


class _Archive:
    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path, self.archive = path, archive
        self.members = {info.filename: info for info in archive.infolist()}
        descriptions = [name for name in self.members if name.endswith("/data.pkl")]
        if len(descriptions) != 1:
            raise CheckpointError(f"{path}: not a PyTorch checkpoint, but another zip archive: no data.pkl in it")
        self.root = descriptions[0].removesuffix("data.pkl")
        order = f"{self.root}byteorder"
        if order in self.members and self.bytes_of(order) != b"little":
            raise CheckpointError(f"{path}: written on a big-endian machine; save it again on a little-endian one")
        self.storages: dict[str, Tensor] = {}

    def read(self) -> Any:
        try:
            return _Interpreter(self.storage, self.tensor).run(self.bytes_of(f"{self.root}data.pkl"))
        except (ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
            reason = f"{type(error).__name__}: {str(error)[:200]}"
            raise CheckpointError(f"{self.path}: its description is inconsistent ({reason})") from error

    def bytes_of(self, name: str) -> bytes:
        info = self.members[name]
        # torch.save neither compresses nor encrypts, so a member cannot grow beyond its bytes in the file.
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise CheckpointError(f"{self.path}: {name} is compressed or encrypted, which torch.save never does")
        return self.archive.read(info)

    def storage(self, reference: Any) -> _Storage:
        kind, type_name, key, _, length = reference
        dtype = DTYPES.get(type_name.name.removeprefix("torch.")) if isinstance(type_name, _Name) else None
        if kind != "storage" or dtype is None or not isinstance(key, str) or not isinstance(length, int):
            raise ValueError("a reference to a storage of a type that is not read")
        return _Storage(key, dtype, length)

    def tensor(self, storage: _Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
        if storage.key not in self.storages:
            raw = bytearray(self.bytes_of(f"{self.root}data/{storage.key}"))
            self.storages[storage.key] = torch.frombuffer(raw, dtype=torch.uint8) if raw else torch.empty(0).byte()
        data = self.storages[storage.key]
        if len(data) != storage.length * storage.dtype.itemsize:
            raise ValueError(f"storage {storage.key}: {len(data)} bytes for {storage.length} x {storage.dtype}")
        numbers = (offset, *shape, *stride)
        if not all(type(number) is int and number >= 0 for number in numbers) or len(shape) != len(stride):
            raise ValueError(f"tensor of shape {shape}, stride {stride} at {offset}")
        count = 1
        for extent in shape:
            count *= extent
        last = offset + sum((extent - 1) * step for extent, step in zip(shape, stride, strict=True)) if count else 0
        if count > storage.length or (count and last >= storage.length):
            raise ValueError(f"tensor of shape {shape}, stride {stride} at {offset} in a storage of {storage.length}")
        if not count:
            return torch.empty(shape, dtype=storage.dtype)
        return data.view(storage.dtype).as_strided(shape, stride, offset)


class _Interpreter:
    """The stack machine of pickle protocols 0 to 5, without the instructions that make it dangerous."""

    def __init__(self, storage: Callable[[Any], _Storage], tensor: Callable[..., Tensor]) -> None:
        self.storage, self.tensor = storage, tensor
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, description: bytes) -> Any:
        for code, argument, _ in pickletools.genops(description):
            if code.name == "STOP":
                (result,) = self.stack
                return result
            self.step(code.name, argument)
        raise ValueError("no end")

    def step(self, code: str, argument: Any) -> None:
        push, pop = self.stack.append, self.stack.pop
        if code in _CONSTANTS:
            push(_CONSTANTS[code]())
        elif code in _LITERALS:
            push(argument)
        elif code in ("PROTO", "FRAME"):
            return
        elif code == "MARK":
            push(_Mark())
        elif code in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif code == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif code in ("GET", "BINGET", "LONG_BINGET"):
            push(self.memo[argument])
        elif code in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(code[-1])
            self.stack[-count:] = [tuple(self.stack[-count:])]
        elif code in ("TUPLE", "LIST"):
            items = self.group()
            push(tuple(items) if code == "TUPLE" else items)
        elif code == "DICT":
            push(_pairs(self.group()))
        elif code in ("APPEND", "APPENDS"):
            items = [pop()] if code == "APPEND" else self.group()
            self.container(list).extend(items)
        elif code in ("SETITEM", "SETITEMS"):
            items = self.stack[-2:] if code == "SETITEM" else self.group()
            if code == "SETITEM":
                del self.stack[-2:]
            self.container(dict).update(_pairs(items))
        elif code in ("ADDITEMS", "FROZENSET"):
            self.group()
            if code == "FROZENSET":
                push(Unknown("frozenset"))
        elif code == "POP":
            pop()
        elif code == "POP_MARK":
            self.group()
        elif code == "DUP":
            push(self.stack[-1])
        elif code == "GLOBAL":
            push(_Name(argument.replace(" ", ".")))
        elif code == "STACK_GLOBAL":
            name, module = pop(), pop()
            push(_Name(f"{module}.{name}"))
        elif code == "BINPERSID":
            push(self.storage(pop()))
        elif code in ("REDUCE", "NEWOBJ"):
            arguments, name = pop(), pop()
            push(self.rebuild(name, arguments))
        elif code == "BUILD":
            pop()  # Attributes of an object that is plain data or unknown here.
        else:
            raise ValueError(f"instruction {code} is none that torch.save writes")

    def group(self) -> list[Any]:
        items: list[Any] = []
        while not isinstance(item := self.stack.pop(), _Mark):
            items.append(item)
        return items[::-1]

    def container(self, kind: type) -> Any:
        target = self.stack[-1]
        if isinstance(target, Unknown):
            return kind()
        if not isinstance(target, kind):
            raise TypeError(f"a {kind.__name__} expected, found a {type(target).__name__}")
        return target

    def rebuild(self, name: Any, arguments: Any) -> Any:
        """What calling ``name`` would give, for the few names that stand for plain data."""
        if not isinstance(name, _Name):
            return Unknown(type(name).__name__)
        if name.name == "collections.OrderedDict":
            return {}
        if name.name == "torch._utils._rebuild_tensor_v2":
            storage, offset, shape, stride = arguments[:4]
            if not isinstance(storage, _Storage):
                raise TypeError("a tensor without storage")
            return self.tensor(storage, offset, shape, stride)
        if name.name == "torch._utils._rebuild_parameter":
            return arguments[0]
        return Unknown(name.name)


def _pairs(items: list[Any]) -> dict[Any, Any]:
    if len(items) % 2:
        raise ValueError("a key without a value")
    return dict(zip(items[::2], items[1::2], strict=True))


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": lambda: Unknown("set"),
}
_LITERALS = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    )
)
