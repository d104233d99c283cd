"""Whether a package gives a working model in a process that knows nothing of the training.

:class:`LoadTest` starts ``python -m sleepfm.registry.load_test`` on the CPU. That process imports torch and the models and then
loads every folder that it is given on a line of its standard input: digests, strict loading, finite weights and, from noise,
finite embeddings. It answers a line of JSON for each. Starting it early hides what its imports take (2 s of one core).
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from sleepfm.errors import RegistryError, SleepFMError

BUILD_MODEL = "sleepfm.models.build:build_model"
_PATIENCE_SECONDS = 600.0


class LoadTest:
    """A fresh process that loads packages; close it, or use it as a context manager."""

    def __init__(self) -> None:
        # What this process can import, that one must be able to import, whatever the working folder.
        path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
        variables = {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "sleepfm.registry.load_test"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            bufsize=0,
            env=os.environ | variables,
        )

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def __enter__(self) -> LoadTest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def check(self, folder: Path, builder: str = BUILD_MODEL, patience_seconds: float = _PATIENCE_SECONDS) -> dict[str, Any]:
        """Load the package in ``folder`` there; what it found (``parameters``, ``embedding``).

        ``builder`` names (``module:function``) what makes a module from the package's ``model``.

        Raises:
            RegistryError: the package does not load, or the process ended or did not answer.
        """
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        line = b""
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps([str(folder.resolve()), builder]).encode() + b"\n")
            if select.select([process.stdout], [], [], patience_seconds)[0]:
                line = process.stdout.readline()
            else:
                process.kill()
        if not line:
            raise RegistryError(f"{folder}: cannot be loaded in a fresh process ({self._end()})")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RegistryError(f"{folder}: does not load in a fresh process ({answer['error']})")
        return answer

    def _end(self) -> str:
        """Why there was no answer."""
        status = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"it ended with status {status}: {said[-1] if said else 'no message'}"

    def close(self) -> None:
        """End the process, which ends by itself when its input does."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(10.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()


def load_test(folder: Path, builder: str = BUILD_MODEL) -> dict[str, Any]:
    """Load the package in ``folder`` in this process and try it on noise.

    Raises:
        SleepFMError: changed bytes, weights or a usage that do not fit, weights or embeddings that are not finite.
    """
    import torch

    from sleepfm.errors import ModelError
    from sleepfm.registry.package import WEIGHTS, build_module, verify

    config = verify(folder, str(folder))
    module, _, function = builder.partition(":")
    model: Any = build_module(folder, config, getattr(importlib.import_module(module), function))
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ModelError(f"{folder / WEIGHTS}: {name} is not finite")
    found: dict[str, Any] = {"parameters": sum(parameter.numel() for parameter in model.parameters())}
    if hasattr(model, "embed"):
        generator = torch.Generator().manual_seed(0)
        with torch.inference_mode():
            embedding = model.embed({name: torch.randn(2, 3000, generator=generator) for name in model.channels})
        if not torch.isfinite(embedding).all():
            raise ModelError(f"{folder}: embeddings of noise are not finite")
        found["embedding"] = list(embedding.shape)
    return found


def main() -> None:
    """Answer for every folder and builder on standard input."""
    # Behind the training, whose signals (save and leave) are not for this process: it ends with its input.
    os.nice(10)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    # Whatever a library prints is no answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    importlib.import_module(BUILD_MODEL.partition(":")[0])
    for line in sys.stdin:
        folder, builder = json.loads(line)
        try:
            answer: dict[str, Any] = load_test(Path(folder), builder)
        except SleepFMError as error:
            answer = {"error": str(error)}
        except Exception as error:  # that is what this process is for
            answer = {"error": repr(error)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
