"""The training engine: any stage, under DeepSpeed, in steps that do not depend on restarts.

Step ``s`` is a function of (weights, ``s``, seed): which items it takes, its masks, its dropout, its learning
rate. A run that is killed and resumed from the checkpoint of step ``s`` repeats nothing and skips nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from sleepfm.config import merge
from sleepfm.data.prefetch import Prefetcher
from sleepfm.errors import CheckpointError, TrainingError
from sleepfm.models import guards
from sleepfm.models.recompute import recompute_activations
from sleepfm.registry.artifacts import seconds_for
from sleepfm.training.feed import Feed, Shares
from sleepfm.training.folder import RunFolder
from sleepfm.training.observer import Observer
from sleepfm.training.ranks.batch_norm import synchronise
from sleepfm.training.ranks.distributed import World, assert_agreement, gather_json, import_deepspeed, on_main
from sleepfm.training.ranks.precision import bf16_products
from sleepfm.training.ranks.preemption import Preemption
from sleepfm.training.ranks.shared_work import SharedWork
from sleepfm.training.run_config import RunConfig, config_digest
from sleepfm.training.schedule import learning_rate, parameter_groups
from sleepfm.training.stage import Loss, Stage, ValidatesLoss
from sleepfm.training.state import checkpoint, universal
from sleepfm.training.state.checkpoint import Saved
from sleepfm.training.state.ema import FILE as EMA_FILE
from sleepfm.training.state.ema import Ema
from sleepfm.training.state.selection import Best
from sleepfm.training.state.weights import StatisticsGuard, average_statistics, share_state, state_digest, whole_state
from sleepfm.training.state.writer import Writer


@dataclass(frozen=True)
class Trained:
    """How training ended: ``step`` steps done; ``finished`` is false if it was asked to leave early."""

    step: int
    finished: bool
    module: nn.Module
    """On every rank, with the best weights if finished."""
    best: Best
    seconds: float


def total_steps(config: RunConfig, stage: Stage) -> int:
    """Optimiser steps of the whole run."""
    if config.train.steps is not None:
        return config.train.steps
    assert config.train.passes is not None
    return max(1, math.ceil(config.train.passes * len(stage.stream) / config.train.global_batch))


def is_logged(config: RunConfig, step: int, steps: int) -> bool:
    """Whether the figures of ``step`` (from 1) of a run of ``steps`` go to the tracking server, guards among them."""
    return step % config.train.log_every == 0 or step == steps


def deepspeed_config(config: RunConfig, shares: Shares, from_universal: bool) -> dict[str, Any]:
    """DeepSpeed's own configuration. Learning rate and schedule stay with the engine."""
    train, options = config.train, config.deepspeed
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": shares.micro_batch,
        "gradient_accumulation_steps": shares.accumulation,
        # Without ZeRO the engine clips, see _Run._finish_plain_gradients.
        "gradient_clipping": train.clip if options.zero else 0.0,
        "steps_per_print": None,
        "zero_optimization": {"stage": options.zero},
        "zero_allow_untested_optimizer": True,
        "optimizer": {
            "type": "AdamW",
            "params": {"lr": train.lr, "betas": list(train.betas), "torch_adam": True},
        },
    }
    if options.dtype == "bf16":
        # Autocast keeps parameters, buffers and norms in fp32 and computes in bf16. The listed module classes
        # are those whose gradients travel in bf16.
        settings["torch_autocast"] = {
            "enabled": True,
            "dtype": "bfloat16",
            **({"lower_precision_safe_modules": []} if options.reduce_dtype == "fp32" else {}),
        }
    if from_universal:
        settings["checkpoint"] = {"load_universal": True}
    return merge(settings, options.extra)


def train(stage: Stage, config: RunConfig, world: World, saved: Saved | None, observer: Observer) -> Trained:
    """Train ``stage`` from ``saved``, or from its first step, to its last, or until asked to leave, and tell ``observer`` of it.

    Raises:
        TrainingError: ranks disagree, or too many non-finite steps in a row.
        CheckpointError: a checkpoint that cannot be loaded or saved.
    """
    return _Run(stage, config, world, saved, observer).run()


class _Run:
    def __init__(self, stage: Stage, config: RunConfig, world: World, saved: Saved | None, observer: Observer) -> None:
        self.stage, self.config, self.world, self.observer = stage, config, world, observer
        self.folder = RunFolder(config.train.output)
        self.steps = total_steps(config, stage)
        self.shares = Shares.of(config.train, world)
        self.zero = config.deepspeed.zero
        self.best = Best(self.folder.best, config.registry, self.folder.segments())
        module = stage.module
        assert_agreement(
            world,
            {
                "configuration": config_digest(config),
                "data set": stage.dataset_digest,
                "initial weights": state_digest(module),
            },
        )
        self.module = module
        self.work = SharedWork(world, config.deepspeed.dtype, observer)
        # What is written or read at once: weights, master copy, two moments, average.
        self.bytes = 5 * 4 * sum(parameter.numel() for parameter in module.parameters())
        observer.at("loading the checkpoint", patient=True)
        observer.goes_on(still_s=seconds_for(self.bytes))
        model = checkpoint.model_digest(module)
        if saved is not None and saved.model not in ("", model):
            raise CheckpointError(
                f"{saved.folder}: has other parameters (names, shapes, or which of them train) than this configuration's model; "
                "give the model that it was saved with, or start in a new folder with init_from= for the weights that fit"
            )
        self.step = saved.step if saved else 0
        groups = parameter_groups(module, config.train.weight_decay)
        universal_folder = None
        if saved is not None and not saved.fits(world.size, self.zero):
            universal_folder = universal.convert(saved, world, groups, module)
        module.train()
        if config.train.batch_norm == "sync" and world.size > 1:
            synchronise(module)
        if config.train.recompute:
            recompute_activations(module)
        if config.train.compile:
            module.compile()
        self.engine, *_ = import_deepspeed().initialize(
            model=module,
            model_parameters=groups,
            config=deepspeed_config(config, self.shares, universal_folder is not None),
            dist_init_required=False,
        )
        if hasattr(self.engine.optimizer, "check_grad_overflow"):
            # DeepSpeed looks for non-finite gradients only under its own bf16 and fp16 modes; so do we.
            self.engine.optimizer.check_grad_overflow = True
        if saved is not None and universal_folder is not None:
            universal.load(self.engine, saved, universal_folder, self.zero)
        elif saved is not None:
            checkpoint.load(self.engine, saved)
        if self.zero:
            # A checkpoint brings that of the run that wrote it.
            self.engine.optimizer.clip_grad = config.train.clip
        root, keep = self.folder.checkpoints, config.train.keep
        self.writer = Writer(self.engine, world, root, self.zero, keep, model, self.folder.record_checkpoint)
        self.saved_at = time.monotonic()
        self.guard = StatisticsGuard(self.engine.module)
        self.ema = Ema(self.engine, config.train.ema, world) if config.train.ema else None
        if saved is not None and self.ema is not None:
            self.ema.load(saved.folder)
        self.skipped_in_row = 0
        self.norm = math.nan

    def run(self) -> Trained:
        train = self.config.train
        began = time.perf_counter()
        feed = Feed(self.stage.stream, self.shares, self.world, self.step, self.steps)
        finished = True
        try:
            with Preemption() as preemption:
                while self.step < self.steps:
                    votes = self._step(feed, lambda: self._votes(preemption.requested))
                    leave, last = votes["leave"] > 0, self.step == self.steps
                    if votes["written"] == 1:
                        self.writer.advance()
                    if last or (train.validate_every and self.step % train.validate_every == 0):
                        self._validate()
                    # Weights do not change while steps are skipped, and the checkpoints before may be what is needed.
                    due = not self.skipped_in_row and (votes["save"] > 0 or self.step % train.checkpoint_every == 0)
                    if last or leave or due:
                        self._save()
                    if leave and not last:
                        finished = False
                        break
                self._finish_saving()
        except BaseException:
            self.writer.rescue()
            raise
        finally:
            feed.close()
        if finished:
            self.observer.at("loading the best weights", patient=True)
            on_main(self.world, lambda: self.best.load_into(self.module))
            share_state(self.module, self.world)
        return Trained(self.step, finished, self.module, self.best, time.perf_counter() - began)

    def _votes(self, asked_to_leave: bool) -> dict[str, bool]:
        """What this rank tells the others with the figures of a step."""
        minutes = self.config.train.checkpoint_minutes
        due = self.world.is_main and 0 < minutes <= (time.monotonic() - self.saved_at) / 60
        return {"leave": asked_to_leave, "save": due, "written": self.writer.ready}

    def _step(self, feed: Feed, vote: Callable[[], dict[str, bool]]) -> dict[str, float]:
        """One optimiser step; for each vote that ranks have at its end, the share of them that gave it."""
        train, world = self.config.train, self.world
        began, waited = time.perf_counter(), feed.waited_seconds
        rate = learning_rate(train, self.step, self.steps)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        self.guard.keep()
        sums: dict[str, torch.Tensor] = {}
        records: list[str] = []
        for part in range(self.shares.accumulation):
            self.observer.at(f"waiting for data of step {self.step + 1}")
            batch = feed.next()
            self.observer.at(f"in the forward pass of step {self.step + 1}")
            torch.manual_seed(_seed(train.seed, self.step, part, world.rank))
            with self._precision(), guards.only_if(is_logged(self.config, self.step + 1, self.steps)):
                loss: Loss = self.stage.loss(self.engine, batch, train.seed)
                _accumulate(sums, loss, 1 / self.shares.accumulation)
                if not torch.isfinite(loss.loss):
                    records.extend(batch.record)
                self.observer.at(f"in the backward pass of step {self.step + 1}")
                # Inside, because activation checkpointing runs parts of the forward pass again.
                self.engine.backward(loss.loss)
            if part == self.shares.accumulation - 1 and self.zero == 0:
                self._finish_plain_gradients()
            self.observer.at(f"in the update of step {self.step + 1}")
            self.engine.step()
        self.observer.at(f"adding up the figures of step {self.step + 1}")
        ballots = {f"vote/{name}": torch.tensor(float(given)).to(sums["loss"]) for name, given in vote().items()}
        figures = _means(sums | ballots, world)
        votes = {name.removeprefix("vote/"): figures.pop(name) for name in ballots}
        applied = self._applied()
        self.step += 1
        seconds = time.perf_counter() - began
        row: dict[str, Any] = {
            "step": self.step,
            "loss": figures.pop("loss"),
            "parts": figures,
            "lr": rate,
            "grad_norm": self._gradient_norm(),
            "epochs_per_s": train.global_batch * self.stage.epochs_per_item / seconds,
            "data_wait": (feed.waited_seconds - waited) / seconds,
        }
        if not applied:
            row["skipped"] = True
            self._skip(row, records, [*batch.record])
        else:
            self.skipped_in_row = 0
            if self.ema is not None:
                self.ema.update(self.step)
        if world.is_main:
            self.observer.report(self.step, row)
        return votes

    def _precision(self) -> AbstractContextManager[Any]:
        return bf16_products(self.world.device) if self.config.deepspeed.dtype == "bf16" else nullcontext()

    def _finish_plain_gradients(self) -> None:
        """Without ZeRO a plain optimiser applies whatever gradients there are: clip them, or drop bad ones."""
        parameters = [p for p in self.engine.module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        self.norm = norm.item()
        if not math.isfinite(self.norm):
            for parameter in parameters:
                parameter.grad = None
        elif self.config.train.clip:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.config.train.clip, norm)

    def _applied(self) -> bool:
        return math.isfinite(self.norm) if self.zero == 0 else bool(self.engine.was_step_applied())

    def _gradient_norm(self) -> float:
        norm = self.norm if self.zero == 0 else self.engine.get_global_grad_norm()
        return float(norm) if norm is not None else math.nan

    def _skip(self, row: dict[str, Any], bad: list[str], seen: list[str]) -> None:
        """Undo what a skipped step did to batch statistics; stop after too many in a row."""
        self.guard.restore()
        self.skipped_in_row += 1
        by_rank = gather_json(self.world, {"bad": bad, "seen": seen})
        named = sorted({name for rank in by_rank for name in rank["bad"]})
        row["recordings"] = named or sorted({name for rank in by_rank for name in rank["seen"]})
        if self.skipped_in_row >= self.config.train.max_skipped:
            self._finish_saving()
            raise TrainingError(
                f"step {self.step}: {self.skipped_in_row} steps in a row had a non-finite "
                f"{'loss' if named else 'gradient'} (train.max_skipped); recordings of the last one: "
                f"{', '.join(row['recordings'])}; look at these recordings, or lower the rate: {self._advice()}"
            )

    def _advice(self) -> str:
        """How to go on with a smaller learning rate, in words that can be typed."""
        rate, there = f"train.lr={self.config.train.lr / 10:g}", checkpoint.steps(self.folder.checkpoints)
        text = f"the same command with {rate} goes on from step {there[0] if there else 0}"
        if len(there) > 1:
            text += f", and with {rate} branch_from={self.folder.root}@{there[1]} train.output=OTHER from the checkpoint before"
        return text

    def _validate(self) -> None:
        """Figures of the validation split by all ranks; keeps the weights if they are the best so far.

        With an average of the weights, all of it is about the average.
        """
        self.observer.at(f"validating step {self.step}", patient=True)
        average_statistics(self.engine.module, self.world)
        with self.ema.in_place() if self.ema is not None else nullcontext():
            figures = self._validation_figures()
        if self.world.is_main:
            self.observer.report(self.step, figures)

    def _validation_figures(self) -> dict[str, float]:
        losses = self._validation_loss()
        self.module.eval()
        with torch.no_grad():
            figures = losses | self.stage.validate(self.module, self.work)
            state = whole_state(self.module, self.world)

            def conclude() -> dict[str, float]:
                self.observer.goes_on("keeping the weights", seconds_for(self.bytes))
                best = self.best.keep_if_better(self.step, figures, state)
                self.observer.validated(self.step, figures, self.module, state, best)
                return figures

            figures = on_main(self.world, conclude)
        self.module.train()
        return figures

    def _validation_loss(self) -> dict[str, float]:
        """``val/loss`` and its parts over held-out items, with the items of a step shared as in training."""
        stage, shares = self.stage, self.shares
        if not isinstance(stage, ValidatesLoss):
            return {}
        steps = min(stage.validation_items, len(stage.validation)) // shares.global_batch
        sums: dict[str, torch.Tensor] = {}
        count = steps * shares.accumulation
        places = (divmod(number, shares.accumulation) for number in range(count))
        plan = ((shares.start(step, part, self.world.rank), shares.micro_batch) for step, part in places)
        self.engine.eval()
        with torch.no_grad(), Prefetcher(stage.validation, plan, pin=self.world.device.type == "cuda") as batches:
            for number, batch in enumerate(batches, 1):
                with self._precision():
                    loss = stage.loss(self.engine, batch.to(self.world.device), self.config.train.seed)
                _accumulate(sums, loss, 1 / count)
                self.observer.goes_on(f"its loss, {number} of {count} parts")
        self.engine.train()
        return {f"val/{name}": value for name, value in _means(sums, self.world).items()}

    def _save(self) -> None:
        self.observer.at(f"saving step {self.step}", patient=True)
        self.observer.goes_on(still_s=seconds_for(self.bytes))
        average_statistics(self.engine.module, self.world)
        self.writer.save(self.step, {} if self.ema is None else {EMA_FILE: self.ema.state()})
        self.saved_at = time.monotonic()

    def _finish_saving(self) -> None:
        self.observer.at("waiting for the last checkpoint to be on the disk", patient=True)
        self.observer.goes_on(still_s=seconds_for(self.bytes))
        self.writer.finish()


def _accumulate(sums: dict[str, torch.Tensor], loss: Loss, weight: float) -> None:
    for name, value in {"loss": loss.loss, **loss.parts}.items():
        sums[name] = sums.get(name, 0) + value.detach().double() * weight


def _means(sums: dict[str, torch.Tensor], world: World) -> dict[str, float]:
    """Means over ranks, in one collective."""
    if not sums:
        return {}
    flat = torch.stack([sums[name] for name in sorted(sums)])
    if world.size > 1:
        dist.all_reduce(flat)
    return dict(zip(sorted(sums), (flat / world.size).tolist(), strict=True))


def _seed(seed: int, step: int, part: int, rank: int) -> int:
    """A seed for this micro-step, from a fixed mixing of its coordinates (splitmix64)."""
    value = 0
    for number in (seed, step, part, rank):
        value = (value ^ number) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        value = (value ^ value >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        value ^= value >> 31
    return value >> 1
