"""A part of ``gpu.py``: it measures in this process and writes a line of JSON for every row as soon as it has it."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
Row = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """What a part measures with.

    Attributes:
        scratch: folder that parts share; ``data`` puts the data set and the packages there.
        rehearse: on the CPU, with tiny sizes.
        reference: checkout of the released code, or empty.
    """

    scratch: Path
    rehearse: bool
    reference: str

    @property
    def device(self) -> Any:
        import torch

        return torch.device("cpu" if self.rehearse else "cuda")

    @property
    def size(self) -> str:
        """Of the recipes: ``base``, or ``tiny`` in a rehearsal."""
        return "tiny" if self.rehearse else "base"

    @property
    def data(self) -> Path:
        return self.scratch / "shards"

    @property
    def packages(self) -> Path:
        return self.scratch / "packages"

    def wait(self) -> None:
        """Until the device has done what it was given."""
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize()


def machine(options: Options) -> Iterator[Row]:
    """What it is, what its products and copies reach."""
    import torch

    from sleepfm.training.tracking.flops import peak_flops
    from sleepfm.training.tracking.machine import environment

    facts = environment("")
    cuda = {"cuda": str(torch.version.cuda), "nccl": ".".join(map(str, torch.cuda.nccl.version()))} if facts["gpus"] else {}
    here = {"devices": facts["gpus"], "cpu": facts["cpu"], "cores": facts["cores"], "torch": torch.__version__}
    yield {"what": "machine", **here, **cuda}
    side = 256 if options.rehearse else 8192
    stated, source = peak_flops(options.device, "bf16")
    for dtype in (torch.bfloat16, torch.float32):
        a = torch.randn(side, side, device=options.device).to(dtype)
        seconds = seconds_of(lambda a=a: a @ a, options)
        row = {"what": f"product of {side} squared in {str(dtype).removeprefix('torch.')}", "flops": 2 * side**3 / seconds}
        yield row | ({"peak": stated, "peak_source": source} if dtype == torch.bfloat16 else {})
    block = torch.empty((2**22 if options.rehearse else 2**32), dtype=torch.uint8, device=options.device)
    target = torch.empty_like(block)
    seconds = seconds_of(lambda: target.copy_(block), options)
    # Read and written.
    yield {"what": "copy in the device's memory", "bytes_per_s": 2 * block.nbytes / seconds}


def seconds_of(work: Any, options: Options, times: int = 10) -> float:
    """Mean seconds of one of some calls, after two that do not count."""
    for number in range(times + 2):
        if number == 2:
            options.wait()
            began = time.perf_counter()
        work()
    options.wait()
    return (time.perf_counter() - began) / times


def data(options: Options) -> Iterator[Row]:
    """A data set of random nights, written as builds write, and untrained models to start from, for the parts after this one."""
    sys.path.insert(0, str(REPOSITORY / "tests"))
    from made_nights import make_dataset, make_night

    from sleepfm.config import read_yaml
    from sleepfm.models.build import build_model, model_config
    from sleepfm.registry.package import write_package

    began = time.perf_counter()
    nights, epochs = (16, 24) if options.rehearse else (32, 480)
    channels = ("EEG_C3", "EEG_C4", "EOG_L", "EOG_R", "EMG_CHIN", "ECG")
    made = make_dataset(options.data, [make_night(f"night{n}", epochs, channels, seed=n) for n in range(nights)], per_shard=4)
    yield {"what": "data set", "epochs": nights * epochs, "digest": made.digest, "seconds": time.perf_counter() - began}
    configs = {name: f"pretrain/{name.lower()}-{options.size}.yaml" for name in ("EEG", "EOG", "EMG", "ECG")}
    for name, config in (configs | {"synthsleepnet": f"models/synthsleepnet-{options.size}.yaml"}).items():
        module = build_model(read_yaml(REPOSITORY / "configs" / config)["model"])
        write_package(options.packages / name, module, {"model": model_config(module)}, "card")
    yield {"what": "packages", "count": len(configs) + 1, "seconds": time.perf_counter() - began}


def tests(options: Options) -> Iterator[Row]:
    """The tests that need a device; in a rehearsal those of a module that has some, without them."""
    report = options.scratch / "tests.xml"
    # Not the whole folder: most of its modules need what is not installed.
    with_some = [path for path in sorted((REPOSITORY / "tests").rglob("test_*.py")) if "@pytest.mark.gpu" in path.read_text()]
    chosen = [str(path.relative_to(REPOSITORY)) for path in with_some] + ["-m", "gpu"]
    if options.rehearse:
        chosen = ["tests/models/test_mamba.py", "-m", "not gpu and not slow"]
    words = [sys.executable, "-m", "pytest", *chosen, "-q", "--continue-on-collection-errors", f"--junitxml={report}"]
    # Modules that need what is not installed are errors of their own; these stand in the report beside the others.
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if not report.exists():
        raise SystemExit(f"pytest ended with {done.returncode}: {done.stdout[-800:]}{done.stderr[-800:]}")
    suite = next(ElementTree.parse(report).getroot().iter("testsuite"))
    counts = {key: int(suite.get(key, "0")) for key in ("tests", "failures", "errors", "skipped")}
    missing = 0
    for case in suite.iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}".strip(":")
        for kind in ("failure", "error"):
            for problem in case.iter(kind):
                text = f"{problem.text or ''}"
                lines = [line.removeprefix("E ").strip() for line in text.splitlines() if line.startswith("E ")]
                reason = next((line for line in lines if line.startswith("ModuleNotFoundError")), "")
                missing += bool(reason)
                row = {"what": name, "left out": reason} if reason else {"what": name, kind: (lines or [text])[-1]}
                yield row
    yield {"what": "tests", **counts, "left out": missing}
    bad = counts["failures"] + counts["errors"] - missing
    if bad or not counts["tests"] - missing - counts["skipped"]:
        raise SystemExit(f"{bad} tests failed of {counts['tests']}, {missing} modules left out, {counts['skipped']} skipped")


def released(options: Options) -> Iterator[Row]:
    """Steps of the models, and of the released code beside them where there is a checkout."""
    report = options.scratch / "models.json"
    cases = "neuronet-tiny" if options.rehearse else "neuronet-base,synthsleepnet-base"
    words = ["benchmarks/models.py", "--only", cases, "--steps", "1" if options.rehearse else "5", "--json", str(report)]
    words += ["--device", options.device.type, "--threads", "1", "--reference", options.reference]
    words += [] if options.rehearse else ["--batch", "64"]
    done = subprocess.run([sys.executable, *words], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"benchmarks/models.py: {done.stderr[-1200:]}")
    if not options.reference:
        yield {"what": "released code", "skipped": "no --reference"}
    for case, variants in json.loads(report.read_text())["cases"].items():
        for name, figures in variants.items():
            yield {"what": f"{case}, {name}", **figures}


# Parts by the name that gpu.py calls them; those in other modules import torch.
PARTS = {
    "machine": machine,
    "data": data,
    "tests": tests,
    "released": released,
    "step": "gpu_steps:step",
    "loader": "gpu_steps:loader",
    "mamba": "gpu_steps:mamba",
    "resume": "gpu_jobs:resume",
    "processes": "gpu_jobs:processes",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="+", metavar="PART", help=f"{', '.join(PARTS)}; step with the kind of a stage")
    parser.add_argument("--rows", type=Path, required=True, help="file that rows are added to")
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--reference", default="")
    parser.add_argument("--rehearse", action="store_true")
    arguments = parser.parse_args()
    # This folder's shards.py must not be taken for the package of that name.
    sys.path.append(sys.path.pop(0))
    name, *more = arguments.part
    found: Any = PARTS[name]
    if isinstance(found, str):
        module, _, function = found.partition(":")
        found = getattr(importlib.import_module(module), function)
    with arguments.rows.open("a", encoding="utf-8") as rows:
        for row in found(Options(arguments.scratch, arguments.rehearse, arguments.reference), *more):
            rows.write(json.dumps(row) + "\n")
            rows.flush()


if __name__ == "__main__":
    main()
