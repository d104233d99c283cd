"""A build into a bucket whose shards go in small parts, and that is killed at one point of an upload.

``python killed_uploads.py POINT MARK ARGUMENTS...`` runs ``python -m shards ARGUMENTS``. ``POINT`` says what is killed and when,
once for each file ``MARK``, which is made then:

* ``none``: nothing.
* ``parts``: the driver, when all parts of a tar are in the store and are to be put together.
* ``object``: the driver, when the store has put them together and its size was not checked.
* ``checked``: the driver, when the size is known to be right and the sidecar is to be put.
* ``worker``: a worker, when it has sent the first part of a tar and is to send the second.

Workers get :func:`run_task` of this module by value, so that they need not know it.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

PART_BYTES = 64 * 2**10
POINT, MARK = sys.argv[1], Path(sys.argv[2])


def die_once() -> None:
    """End this process without a word, unless one has ended so before."""
    try:
        MARK.touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def run_task(*arguments: Any) -> Any:
    """:func:`shards.cluster.run_task` in a worker that looks often for small parts to send."""
    from shards import cluster, early_upload, store

    early_upload.PART_BYTES, early_upload._POLL_SECONDS = PART_BYTES, 0.01
    upload_type: Any = store.Upload
    send = upload_type.send

    def sent(upload: store.Upload, number: int, part: bytes) -> None:
        if number == 2:
            die_once()
        send(upload, number, part)

    if POINT == "worker":
        upload_type.send = sent
    try:
        return cluster.run_task(*arguments)
    finally:
        upload_type.send = send


def prepare() -> None:
    """Have this driver die at ``POINT``, and its workers send small parts."""
    from shards import cluster, store, task_folder

    upload_type: Any = store.Upload
    driver: Any = cluster
    folder: Any = task_folder
    commit, put_sidecar = upload_type.commit, folder._put_sidecar

    def committed(upload: store.Upload) -> None:
        if POINT == "parts":
            die_once()
        commit(upload)
        if POINT == "object":
            die_once()

    def put(*arguments: Any) -> None:
        if POINT == "checked":
            die_once()
        put_sidecar(*arguments)

    upload_type.commit = committed
    folder._put_sidecar = put
    driver.run_task = run_task


if __name__ == "__main__":
    from shards.__main__ import main

    prepare()
    sys.exit(main(sys.argv[3:]))
