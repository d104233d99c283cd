"""Faults of a configuration at a number of processes: shares, selection, validation, batch norm; and what is doubtful."""

from __future__ import annotations

import difflib

from sleepfm.models.negatives import group_size
from sleepfm.training.engine import total_steps
from sleepfm.training.feed import Shares
from sleepfm.training.preflight.faults import Fault, fault_of
from sleepfm.training.ranks.distributed import World
from sleepfm.training.run_config import RunConfig
from sleepfm.training.stage import Stage, ValidatesLoss


def faults_of_plan(config: RunConfig, world: World) -> list[Fault]:
    """What the configuration alone says."""
    indivisible = fault_of(lambda: Shares.of(config.train, world))
    return [
        *indivisible,
        *([] if indivisible else batch_norm(config, Shares.of(config.train, world), world)),
        *fault_of(lambda: group_size(config.negatives(), world.size, world.local_size)),
        *selection(config),
        *direction(config),
        *validation(config),
    ]


def selection(config: RunConfig) -> list[Fault]:
    """``registry.metric`` is validated by this stage."""
    metric, figures = config.registry.metric, [*config.figures(), *config.losses()]
    if not figures or metric in figures:
        return []
    near = difflib.get_close_matches(metric, figures, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(figures))}"
    return [Fault(f"registry.metric={metric}: this job does not validate this metric, so no model could be selected; {hint}")]


def direction(config: RunConfig) -> list[Fault]:
    """``registry.mode`` fits ``registry.metric``: the worst weights would else be taken for the best."""
    metric, mode = config.registry.metric, config.registry.mode
    if metric in config.smaller_is_better():
        right, better = "min", "smaller"
    elif metric in config.larger_is_better():
        right, better = "max", "larger"
    else:
        return []
    if mode == right:
        return []
    return [
        Fault(
            f"registry.mode={mode}: of {metric} {better} is better, so the worst weights would be selected; set "
            f"registry.mode={right}"
        )
    ]


def validation(config: RunConfig) -> list[Fault]:
    """``data.validation_items`` covers a global batch, of which the validation takes whole ones."""
    items, batch = config.validated_items(), config.train.global_batch
    if items is None or items >= batch or (items == 0 and config.registry.metric not in config.losses()):
        return []
    needed = f" and registry.metric={config.registry.metric}" if config.registry.metric in config.losses() else ""
    return [
        Fault(
            f"data.validation_items={items}: the loss is validated in full steps of train.global_batch={batch} items, so "
            f"there would be no val/loss{needed}; set data.validation_items to {batch} or a multiple of it"
        )
    ]


def batch_norm(config: RunConfig, shares: Shares, world: World) -> list[Fault]:
    """Every batch norm gets two rows or more; with one, it would take its running statistics without a word."""
    together = shares.micro_batch * (world.size if config.train.batch_norm == "sync" else 1)
    rows = config.rows_per_item() * together
    if rows == 0 or rows > 1:
        return []
    return [
        Fault(
            f"train.global_batch={config.train.global_batch}: a micro-step of one item a rank ({config.train.accumulation} "
            f"accumulated, {world.size} processes) gives batch norms only one row, which has no variance, so they would learn "
            f"nothing; raise train.global_batch to {2 * config.train.accumulation * world.size} or more, lower "
            "train.accumulation, or set train.batch_norm=sync"
        )
    ]


def split(config: RunConfig, stage: Stage) -> list[Fault]:
    """The held-out items are enough for the loss to be validated, where it is to be."""
    if not isinstance(stage, ValidatesLoss):
        return []
    selects = config.registry.metric in config.losses()
    found, batch = len(stage.validation), config.train.global_batch
    if found >= batch or (stage.validation_items == 0 and not selects):
        return []
    choices = "select by another metric" if selects else "set data.validation_items=0 to do without val/loss"
    return [
        Fault(
            f"{f'registry.metric={config.registry.metric}' if selects else 'data.validation_items'}: the split val has {found} "
            f"items, fewer than one step of train.global_batch={batch}, so the loss cannot be validated; build from more "
            f"subjects, lower train.global_batch, or {choices}"
        )
    ]


def doubts(config: RunConfig, stage: Stage) -> list[str]:
    """What may be meant, but seldom is: a warm-up that never ends, and a step that takes items more than once."""
    train, steps, items = config.train, total_steps(config, stage), len(stage.stream)
    found = []
    if train.warmup >= steps:
        found.append(
            f"train.warmup={train.warmup}: the run ends after {steps} steps, before the warm-up has reached "
            f"train.lr={train.lr:g}; lower train.warmup"
        )
    if items < train.global_batch:
        found.append(
            f"train.global_batch={train.global_batch}: a pass over the data set has {items} items, so that one step takes some "
            "more than once; lower train.global_batch"
        )
    return found
