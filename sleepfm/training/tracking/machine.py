"""What rank 0's host is doing: processors, memory, disk, network and GPUs, under the names that MLflow's own pages show.

MLflow could sample these itself, but sends them past the journal, so that they would be lost with the server.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

_SECONDS_BETWEEN_SAMPLES = 10.0
_MEGABYTE = 1e6


class Sampler:
    """Calls ``take(sample)`` every ten seconds from a thread of its own, until closed."""

    def __init__(self, folder: Path, take: Callable[[dict[str, float]], None], seconds: float = _SECONDS_BETWEEN_SAMPLES) -> None:
        self._folder, self._take, self._seconds = folder, take, seconds
        self._process = psutil.Process()
        self._before = psutil.net_io_counters()
        psutil.cpu_percent()
        self._process.cpu_percent()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="sampler", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while not self._stop.wait(self._seconds):
            self._take(self.sample())

    def sample(self) -> dict[str, float]:
        """Percentages, megabytes (1e6 bytes) in use, and megabytes moved since the run started."""
        memory, disk, network = psutil.virtual_memory(), psutil.disk_usage(str(self._folder)), psutil.net_io_counters()
        figures = {
            "system/cpu_utilization_percentage": psutil.cpu_percent(),
            "system/system_memory_usage_megabytes": (memory.total - memory.available) / _MEGABYTE,
            "system/system_memory_usage_percentage": memory.percent,
            "system/disk_usage_megabytes": disk.used / _MEGABYTE,
            "system/disk_usage_percentage": disk.percent,
            "system/network_receive_megabytes": (network.bytes_recv - self._before.bytes_recv) / _MEGABYTE,
            "system/network_transmit_megabytes": (network.bytes_sent - self._before.bytes_sent) / _MEGABYTE,
            "system/process_memory_megabytes": self._process.memory_info().rss / _MEGABYTE,
            "system/process_cpu_percentage": self._process.cpu_percent(),
        }
        for number in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(number)
            figures[f"system/gpu_{number}_memory_usage_megabytes"] = (total - free) / _MEGABYTE
            figures[f"system/gpu_{number}_memory_usage_percentage"] = 100 * (total - free) / total
        if torch.cuda.is_available():
            figures["system/process_gpu_memory_megabytes"] = torch.cuda.memory_allocated() / _MEGABYTE
            figures["system/process_gpu_memory_peak_megabytes"] = torch.cuda.max_memory_allocated() / _MEGABYTE
        return figures

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join()


def environment(commit: str) -> dict[str, Any]:
    """What a run was made with: commit, interpreter, every installed package, processors and GPUs."""
    packages = {item.metadata["Name"]: item.version for item in importlib.metadata.distributions() if item.metadata["Name"]}
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "git_commit": commit,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": gpus,
        "cuda": torch.version.cuda,
        "packages": dict(sorted(packages.items(), key=lambda item: item[0].lower())),
    }


def cpu_model() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
