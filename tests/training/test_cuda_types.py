"""Every stage's training and validation step in the types that CUDA would give it, without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cuda_autocast import LOWER, PROMOTED, REFUSED, NoCudaKernel, cuda_autocast
from made_nights import EVERY_CHANNEL, make_dataset, make_night

from sleepfm.config import load_config
from sleepfm.data.dataset import Dataset
from sleepfm.paths import config_root
from sleepfm.stages.downstream_config import FinetuneConfig, ProbeConfig
from sleepfm.stages.finetune import FinetuneStage
from sleepfm.stages.pretrain import PretrainConfig, build_stage
from sleepfm.stages.probe import ProbeStage
from sleepfm.training.job import Context
from sleepfm.training.ranks.distributed import World
from sleepfm.training.stage import Stage

ALONE = World(0, 1, 0, 1)
MODALITIES = ("EEG", "EOG", "EMG", "ECG")
CHANNEL_SETS = (EVERY_CHANNEL, ("EEG_C4", "ECG"))
Operation = Callable[[torch.Tensor], torch.Tensor]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    torch.set_num_threads(1)
    # Every other night lacks channels, so that what is done for absent ones is typed too.
    nights = [make_night(f"night{n}", 12, CHANNEL_SETS[n % 2], seed=n) for n in range(16)]
    return make_dataset(tmp_path_factory.mktemp("shards") / "set", nights, per_shard=4)


def stage_of(kind: str, dataset: Dataset, packages: Path, folder: Path) -> Stage:
    shared = [f"data.path={dataset.path}", f"train.output={folder / 'run'}", "train.global_batch=4"]
    encoder = f"encoder={packages / 'synthsleepnet'}"
    encoders = [f"encoders.{name}={packages / name}" for name in MODALITIES]
    schema: Any = PretrainConfig
    config, overrides = {
        "unimodal": ("pretrain/eeg-tiny", []),
        "multimodal": ("pretrain/multimodal-tiny", encoders),
        "context": ("pretrain/context-tiny", [encoder, f"cache={folder}/cache", "model.length=10", "model.span=2"]),
        "probe": ("downstream/probe-stage-tiny", [encoder, f"cache={folder}/cache"]),
        "fine-tune": ("downstream/finetune-stage-tiny", [encoder]),
        "full fine-tune": ("downstream/finetune-stage-tiny", [encoder, "tune.mode=full"]),
        "events": ("downstream/finetune-apnea-events-tiny", [encoder]),
    }[kind]
    if config.startswith("downstream"):
        schema = ProbeConfig if kind == "probe" else FinetuneConfig
        overrides = [*overrides, "evaluate.resamples=0"]
    if kind in ("fine-tune", "full fine-tune", "events"):
        overrides = [*overrides, "sequence.length=3", "sequence.stride=3"]
    settings = load_config(schema, config_root() / f"{config}.yaml", [*shared, *overrides])
    context = Context(ALONE, f"sqlite:///{folder}/mlflow.db", "never", settings)
    if kind == "probe":
        return ProbeStage(settings, context.pull(settings.encoder), ALONE)
    if config.startswith("downstream"):
        return FinetuneStage(settings, context.pull(settings.encoder))
    return build_stage(settings, context)


@pytest.mark.parametrize("kind", ["unimodal", "multimodal", "context", "probe", "fine-tune", "full fine-tune", "events"])
def test_a_step_of_every_stage_has_kernels_in_cuda(dataset: Dataset, packages: Path, tmp_path: Path, kind: str) -> None:
    stage = stage_of(kind, dataset, packages, tmp_path)
    module = stage.module.train()
    batch = stage.stream.batch(0, 4)
    with cuda_autocast():
        loss = stage.loss(module, batch, 1)
        loss.loss.backward()
    assert loss.loss.dtype == torch.float32
    assert all(part.dtype in (torch.float32, torch.float64) and part.isfinite() for part in loss.parts.values())
    trained = [p for p in module.parameters() if p.grad is not None]
    assert trained and all(p.grad.dtype == torch.float32 for p in trained if p.grad is not None)
    validation = getattr(stage, "validation", None)
    module.eval()
    with cuda_autocast(), torch.no_grad():
        held_out = validation.batch(0, 4) if hasattr(validation, "batch") else batch
        assert stage.loss(module, held_out, 1).loss.isfinite()


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["unimodal", "multimodal", "context", "probe", "fine-tune", "full fine-tune", "events"])
def test_a_step_of_every_stage_runs_on_the_device(dataset: Dataset, packages: Path, tmp_path: Path, kind: str) -> None:
    stage = stage_of(kind, dataset, packages, tmp_path)
    device = torch.device("cuda")
    module = stage.module.train().to(device)
    with torch.autocast("cuda", torch.bfloat16):
        loss = stage.loss(module, stage.stream.batch(0, 4).to(device), 1)
        loss.loss.backward()
    assert loss.loss.isfinite() and all(part.isfinite() for part in loss.parts.values())


def test_the_list_of_operations_is_that_of_the_installed_torch() -> None:
    names = {name.removeprefix("aten::") for name in torch._C._dispatch_get_registrations_for_dispatch_key("AutocastCUDA")}
    assert {name.partition(".")[0] for name in names} >= LOWER | PROMOTED | REFUSED


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        (lambda x: x @ x, torch.bfloat16),
        (lambda x: torch.nn.functional.linear(x, x), torch.bfloat16),
        (lambda x: x.softmax(-1), torch.float32),
        (lambda x: (x @ x).exp(), torch.float32),
        (lambda x: (x @ x).sum(), torch.float32),
        (lambda x: torch.nn.functional.layer_norm(x @ x, (4,)), torch.float32),
        (lambda x: (x @ x) + 1, torch.bfloat16),
        (lambda x: (x @ x) + x, torch.float32),
    ],
)
def test_operations_get_the_types_of_cudas_autocast(operation: Operation, expected: torch.dtype) -> None:
    with cuda_autocast():
        assert operation(torch.randn(4, 4)).dtype == expected


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: torch.linalg.eigvalsh(x @ x),
        lambda x: torch.linalg.svdvals(x @ x),
        lambda x: torch.nn.functional.binary_cross_entropy(x.sigmoid(), x.sigmoid()),
    ],
)
def test_what_cuda_lacks_is_refused(operation: Operation) -> None:
    with cuda_autocast(), pytest.raises(NoCudaKernel):
        operation(torch.randn(4, 4))
    with torch.autocast("cpu", torch.bfloat16):
        operation(torch.rand(4, 4))  # which the CPU's own autocast widens, and so hides
