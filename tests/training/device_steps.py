"""What a stage does on a device between two saves, by its real class: for a GPU, and for a device that stands for one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from host_reads import HostReads
from torch import nn

from sleepfm.config import load_config
from sleepfm.data.batch import Batch
from sleepfm.models import guards
from sleepfm.paths import config_root
from sleepfm.registry.registry import load_package
from sleepfm.stages.context import ContextStage
from sleepfm.stages.downstream_config import FinetuneConfig, ProbeConfig
from sleepfm.stages.finetune import FinetuneStage
from sleepfm.stages.pretrain import PretrainConfig, build_stage
from sleepfm.stages.probe import ProbeStage
from sleepfm.training.job import Context
from sleepfm.training.ranks.shared_work import ALONE, SharedWork
from sleepfm.training.schedule import parameter_groups
from sleepfm.training.stage import Stage, ValidatesLoss
from sleepfm.training.state.weights import state_digest, whole_state

MODALITIES = ("EEG", "EOG", "EMG", "ECG")
ITEMS = 4
_TINY = ["model.length=10", "model.span=2"]
_SHORT = ["sequence.length=3", "sequence.stride=3"]
# Stages by name: their configuration, and what of it is changed.
STAGES: dict[str, tuple[str, list[str]]] = {
    "unimodal": ("pretrain/eeg-tiny", []),
    "unimodal, recomputed": ("pretrain/eeg-tiny", ["train.recompute=true"]),
    "multimodal": ("pretrain/multimodal-tiny", []),
    "multimodal, modalities left out": ("pretrain/multimodal-tiny", ["model.modality_dropout=0.5"]),
    "context": ("pretrain/context-tiny", _TINY),
    "context of attention": ("pretrain/context-tiny", [*_TINY, "model.context.kind=attention"]),
    "probe": ("downstream/probe-stage-tiny", []),
    "probe of a NeuroNet": ("downstream/probe-stage-tiny", []),
    "fine-tune": ("downstream/finetune-stage-tiny", _SHORT),
    "fine-tune, frozen": ("downstream/finetune-stage-tiny", [*_SHORT, "tune.mode=frozen", "weighting=inverse"]),
    "fine-tune, full": ("downstream/finetune-stage-tiny", [*_SHORT, "tune.mode=full"]),
    "fine-tune, both ways": ("downstream/finetune-stage-tiny", [*_SHORT, "context.bidirectional=true"]),
    "fine-tune, powers of bands": (
        "downstream/finetune-stage-tiny",
        [*_SHORT, "tune.mode=frozen", "band_powers.channels=[EEG_C4]"],
    ),
    "events": (
        "downstream/finetune-apnea-events-tiny",
        [*_SHORT, "events.kinds=[obstructive_apnea, central_apnea]", "events.amplitudes=[EEG_C4]"],
    ),
    "events on frames": (
        "downstream/events-apnea-tiny",
        [*_SHORT, "events.amplitudes=[EEG_C4]"],
    ),
}


def build(kind: str, dataset: Path, packages: Path, folder: Path, work: SharedWork = ALONE, data: Sequence[str] = ()) -> Stage:
    """The stage ``kind`` of :data:`STAGES` on the data set at ``dataset``, from ``packages``, by the ranks of ``work``.

    ``data`` are settings of other data, in the place of ``dataset``.
    """
    name, overrides = STAGES[kind]
    encoder = f"encoder={packages / ('EEG' if kind.endswith('NeuroNet') else 'synthsleepnet')}"
    shared = [*(data or [f"data.path={dataset}"]), f"train.output={folder / 'run'}", f"train.global_batch={ITEMS}", *overrides]
    if kind.startswith("multimodal"):
        shared += [f"encoders.{modality}={packages / modality}" for modality in MODALITIES]
    elif not kind.startswith("unimodal"):
        shared += [encoder]
    if kind.startswith(("context", "probe", "events on")):
        shared += [f"cache={folder}/cache"]
    schema: Any = PretrainConfig
    if name.startswith("downstream"):
        schema = ProbeConfig if kind.startswith("probe") else FinetuneConfig
        shared += ["evaluate.resamples=0"]
    elif not kind.startswith("context"):
        shared += ["data.validation_items=8", "monitor.label_epochs=40", "monitor.val_epochs=40", "monitor.chunk=16"]
    settings = load_config(schema, config_root() / f"{name}.yaml", shared)
    context = Context(work.world, f"sqlite:///{folder}/mlflow.db", "never", settings)
    if schema is ProbeConfig:
        return ProbeStage(settings, context.pull(settings.encoder), work)
    if schema is FinetuneConfig:
        return FinetuneStage(settings, context.pull(settings.encoder), work)
    if kind.startswith("context"):
        return ContextStage(settings, load_package(context.pull(settings.encoder)), work)
    return build_stage(settings, context)


def take_step(
    kind: str, device: torch.device, dataset: Path, packages: Path, folder: Path, data: Sequence[str] = ()
) -> dict[str, float]:
    """Two training steps of stage ``kind`` in bf16, its held-out loss, its validation, its packaging; the figures.

    The first step is one that is logged, the second is not.

    Raises:
        AssertionError: types that the engine relies on are not what they should be, or a step waits for the device: one that is
            logged for the effective rank, any other at all.
    """
    torch.manual_seed(0)
    work = SharedWork(ALONE.world, "bf16", device=device)
    stage = build(kind, dataset, packages, folder, work, data)
    module = stage.module.to(device).train()
    config: Any = getattr(stage, "config")  # noqa: B009 (no part of what the engine knows)
    if config.train.recompute:
        from sleepfm.models.recompute import recompute_activations

        assert recompute_activations(module)
    optimiser = torch.optim.AdamW(parameter_groups(module, 0.01), lr=1e-4)
    figures: dict[str, float] = {}
    for step, logged in enumerate((True, False)):
        batch = stage.stream.batch(step * ITEMS, ITEMS).to(device)
        with guards.only_if(logged):
            figures |= _training_step(stage, module, optimiser, batch, step)
    module.eval()
    with torch.no_grad():
        if isinstance(stage, ValidatesLoss):
            held_out = stage.validation.batch(0, ITEMS).to(device)
            with torch.autocast(device.type, torch.bfloat16):
                figures |= {f"val/{name}": value for name, value in _figures(stage.loss(module, held_out, 1)).items()}
        figures |= stage.validate(module, work)
        assert state_digest(module)
        assert all(value.device.type == "cpu" for value in whole_state(module, ALONE.world).values())
        (folder / "run").mkdir(exist_ok=True)
        stage.export(module, folder / "run", work)
    return figures


def _training_step(
    stage: Stage, module: nn.Module, optimiser: torch.optim.Optimizer, batch: Batch, step: int
) -> dict[str, float]:
    device = batch.signals.device
    with torch.autocast(device.type, torch.bfloat16), HostReads(device) as reads:
        loss = stage.loss(module, batch, 1)
        # As the engine does, inside: recomputed parts of the forward pass run under autocast too.
        loss.loss.backward()
    waits = [str(read) for read in reads.found]
    if step == 0:
        # What stays on the device, such as the weights of classes, comes there once.
        waits = [wait for wait in waits if "_linalg_eigh at sleepfm/models/guards.py" not in wait and "copy from cpu" not in wait]
    assert not waits, waits
    assert loss.loss.dtype == torch.float32
    assert all(part.dtype in (torch.float32, torch.float64) for part in loss.parts.values())
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    assert gradients and all(gradient.dtype == torch.float32 for gradient in gradients)
    trained = [parameter for parameter in module.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    torch.nn.utils.clip_grads_with_norm_(trained, 1.0, norm)
    optimiser.step()
    optimiser.zero_grad()
    return _figures(loss) | {"grad_norm": norm.item()}


def _figures(loss: Any) -> dict[str, float]:
    return {name: value.item() for name, value in {"loss": loss.loss, **loss.parts}.items()}
