"""What files there are below a folder or a prefix of keys: names and sizes alone, a few megabytes for a hundred thousand."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

from sleepfm.signals.files import answering, is_remote

# Listings of so many objects stay in the store's client, where further questions about them cost no request. What it keeps of an
# object is a kilobyte or two.
_KEPT_BY_CLIENT = 10_000

# Bytes where the listing says them, by name.
Names = dict[str, int | None]


def list_names(
    root: Path,
    suffixes: Iterable[str],
    unlisted: Callable[[OSError], object] | None = None,
    progress: Callable[[int], object] | None = None,
) -> Names:
    """Files at any depth below ``root`` whose names end in ``suffixes`` (lower case), sorted; hidden files and folders left out.

    Args:
        unlisted: gets the error of ``root``, or a folder in it, that cannot be listed, and the others are gone through.
        progress: gets the number of those found so far, again and again.

    Returns:
        Names relative to ``root``, with slashes. An object store tells sizes, a disk does not.

    Raises:
        OSError: this error, without ``unlisted``.
    """
    endings = tuple(suffixes)
    found: Names = {}
    for names in _remote(root) if is_remote(root) else _local(root, unlisted or _raise):
        for name, size in names:
            base = name.rpartition("/")[2]
            if base.lower().endswith(endings) and not any(part.startswith(".") for part in name.split("/")):
                found[name] = size
        if progress is not None:
            progress(len(found))
    return {name: found[name] for name in sorted(found, key=lambda name: name.split("/"))}


def list_files(root: Path, suffixes: Iterable[str], unlisted: Callable[[OSError], object] | None = None) -> list[Path]:
    """The files of :func:`list_names`, as paths."""
    return [root / name for name in list_names(root, suffixes, unlisted)]


def _raise(error: OSError) -> None:
    raise error


def _local(root: Path, unlisted: Callable[[OSError], object]) -> Iterator[list[tuple[str, int | None]]]:
    """Names folder by folder."""
    below = len(str(root).rstrip("/")) + 1
    for folder, folders, names in os.walk(root, onerror=unlisted):
        folders[:] = [name for name in folders if not name.startswith(".")]
        place = f"{folder}/"[below:].lstrip("/")
        yield [(place + name, None) for name in names]


def _remote(root: Path) -> Iterator[list[tuple[str, int | None]]]:
    """Names page by page where the store's client gives pages, else at once."""
    base = cast(Any, root)
    if not hasattr(base.fs, "call_s3"):
        yield _at_once(base)
        return
    bucket, key, _ = base.fs.split_path(base.path)
    prefix = f"{key.rstrip('/')}/" if key else ""
    first: list[tuple[str, int | None]] = []
    further: dict[str, str] = {}
    while True:
        with answering(root):
            page = base.fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, **base.fs.req_kw, **further)
        names = [(item["Key"].removeprefix(prefix), int(item["Size"])) for item in page.get("Contents", ())]
        last = not page.get("IsTruncated")
        if len(first) <= _KEPT_BY_CLIENT:
            first += names
            if last:
                # The client lists them once more, and keeps them.
                yield _at_once(base)
                return
            if len(first) > _KEPT_BY_CLIENT:
                yield first
        else:
            yield cast(list[tuple[str, int | None]], names)
        if last:
            return
        further = {"ContinuationToken": page["NextContinuationToken"]}


def _at_once(base: Any) -> list[tuple[str, int | None]]:
    prefix = base.path.rstrip("/") + "/"
    with answering(base):
        found = base.fs.find(base.path, detail=True)
    return [(key.removeprefix(prefix), info.get("size")) for key, info in found.items() if key.startswith(prefix)]
