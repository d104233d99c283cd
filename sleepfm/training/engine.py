"""The training engine: any stage, under DeepSpeed, in steps that do not depend on restarts.

Step ``s`` is a function of (weights, ``s``, seed): which items it takes, its masks, its dropout, its learning
rate. A run that is killed and resumed from the checkpoint of step ``s`` repeats nothing and skips nothing.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sleepfm.data.identity import as_digest
from sleepfm.data.mixed_stream import sources_of
from sleepfm.data.prefetch import Prefetcher
from sleepfm.errors import CheckpointError, TrainingError
from sleepfm.models import guards
from sleepfm.models.recompute import recompute_activations
from sleepfm.registry.artifacts import seconds_for
from sleepfm.training.compilation import compile_module
from sleepfm.training.feed import Feed, Shares
from sleepfm.training.figures import Sums, mean_over_ranks, on_device
from sleepfm.training.folder import RunFolder
from sleepfm.training.in_flight import Taken
from sleepfm.training.observer import Observer
from sleepfm.training.ranks.batch_norm import synchronise
from sleepfm.training.ranks.distributed import World, assert_agreement, gather_json, import_deepspeed, on_main
from sleepfm.training.ranks.precision import bf16_products
from sleepfm.training.ranks.preemption import Preemption
from sleepfm.training.ranks.shared_work import SharedWork
from sleepfm.training.run_config import RunConfig, config_digest
from sleepfm.training.schedule import learning_rate, parameter_groups, steps_of
from sleepfm.training.stage import HasOwnRates, Stage, ValidatesLoss
from sleepfm.training.state import checkpoint, universal
from sleepfm.training.state.checkpoint import Saved
from sleepfm.training.state.ema import FILE as EMA_FILE
from sleepfm.training.state.ema import Ema
from sleepfm.training.state.selection import Best
from sleepfm.training.state.weights import StatisticsGuard, average_statistics, share_state, state_digest, whole_state
from sleepfm.training.state.writer import Writer
from sleepfm.training.update import Update
from sleepfm.training.zero import deepspeed_config, trained_sizes


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
    return steps_of(config.train, len(stage.stream))


def is_logged(config: RunConfig, step: int, steps: int) -> bool:
    """Whether the figures of ``step`` (from 1) of a run of ``steps`` go to the tracking server, guards among them."""
    return step % config.train.log_every == 0 or step == steps


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
                # Shares of a mixture are no part of the configuration's digest.
                "data set": as_digest(stage.dataset_digest).mixture,
                "initial weights": state_digest(module),
            },
        )
        self.module = module
        self.work = SharedWork(world, config.deepspeed.compute_dtype, observer)
        # What is written or read at once: weights, master copy, two moments, average.
        self.bytes = 5 * 4 * sum(parameter.numel() for parameter in module.parameters())
        observer.at("loading the checkpoint", patient=True)
        observer.goes_on(still_s=seconds_for(self.bytes))
        model = checkpoint.model_digest(module)
        if saved is not None and saved.model not in ("", model):
            raise CheckpointError(
                f"{saved.folder}: has other parameters (names, shapes, or which of them train) than this configuration's model; "
                "use the model that it was saved with, or start in a new folder with init_from=, which takes the weights that fit"
            )
        self.step = saved.step if saved else 0
        own = (stage.weight_decay, stage.rate_of) if isinstance(stage, HasOwnRates) else (config.train.weight_decay,)
        groups = parameter_groups(module, *own)
        universal_folder = None
        if saved is not None and not saved.fits(world.size, self.zero):
            universal_folder = universal.convert(saved, world, groups, module)
        module.train()
        if config.train.batch_norm == "sync" and world.size > 1:
            synchronise(module)
        if config.train.recompute:
            recompute_activations(module)
        compile_module(module, config.train.compile, world.device)
        self.engine, *_ = import_deepspeed().initialize(
            model=module,
            model_parameters=groups,
            config=deepspeed_config(config, self.shares, trained_sizes(module), universal_folder is not None),
            dist_init_required=False,
        )
        if saved is not None and universal_folder is not None:
            universal.load(self.engine, saved, universal_folder, self.zero)
        elif saved is not None:
            checkpoint.load(self.engine, saved)
        self.update = Update(self.engine, self.zero, config.train.clip, world)
        root, keep = self.folder.checkpoints, config.train.keep
        self.writer = Writer(self.engine, world, root, self.zero, keep, model, self.folder.record_checkpoint)
        self.saved_at = time.monotonic()
        self.guard = StatisticsGuard(self.engine.module)
        self.ema = Ema(self.engine, config.train.ema, world) if config.train.ema else None
        if saved is not None and self.ema is not None:
            self.ema.load(saved.folder)
        self.skipped_in_row = 0
        self.taken: Taken | None = None
        # Since when a step takes its time, and how long data had been waited for by then.
        self.clock = (0.0, 0.0)
        self.leaves = self.saves = False
        # Also where a run that goes on had come to its end before.
        self.stops = on_main(world, self._is_stuck)

    def run(self) -> Trained:
        train = self.config.train
        began = time.perf_counter()
        self.feed = Feed(self.stage.stream, self.shares, self.world, self.step, self.steps)
        finished = True
        try:
            with Preemption() as preemption:
                while self.step < self.steps and not self.stops:
                    self._step(preemption)
                    last = self.step == self.steps
                    validates = last or (train.validate_every > 0 and self.step % train.validate_every == 0)
                    # Nothing is judged or kept before it is known whether the last update was made.
                    if validates or self.leaves or self.saves or self.step % train.checkpoint_every == 0:
                        self._learn()
                    if validates:
                        self._validate()
                        last = last or self.stops
                    # Weights do not change while steps are skipped, and the checkpoints before may be what is needed.
                    due = not self.skipped_in_row and (self.saves or self.step % train.checkpoint_every == 0)
                    if last or self.leaves or due:
                        self._save()
                    if self.leaves and not last:
                        finished = False
                        break
                self._finish_saving()
        except BaseException:
            self.writer.rescue()
            raise
        finally:
            self.feed.close()
        if finished:
            self.observer.at("loading the best weights", patient=True)
            on_main(self.world, lambda: self.best.load_into(self.module))
            share_state(self.module, self.world)
        return Trained(self.step, finished, self.module, self.best, time.perf_counter() - began)

    def _is_stuck(self) -> bool:
        """Whether so many validations as ``train.patience`` were no better than the best, so that the run ends here, of which the
        observer is told. On rank 0, which has the best.
        """
        train = self.config.train
        if not train.patience or not self.best.figures or self.step >= self.steps:
            return False
        # Of another segment, in which something was changed, validations count anew.
        since = max(self.best.step, self.folder.segments()[-1].step)
        validated = self.step - self.step % train.validate_every
        stuck = validated - since >= train.patience * train.validate_every
        if stuck:
            self.observer.ends_early(self.step)
        return stuck

    def _votes(self, asked_to_leave: bool) -> dict[str, bool]:
        """What this rank tells the others with the figures of a step."""
        minutes = self.config.train.checkpoint_minutes
        due = self.world.is_main and 0 < minutes <= (time.monotonic() - self.saved_at) / 60
        return {"leave": asked_to_leave, "save": due, "written": self.writer.ready}

    def _step(self, preemption: Preemption) -> None:
        """Queue one optimiser step, and learn meanwhile what became of the one before."""
        train, world, feed = self.config.train, self.world, self.feed
        self.observer.begins(self.step + 1)
        if self.taken is None:
            self.clock = (time.perf_counter(), feed.waited_seconds)
        rate = learning_rate(train, self.step, self.steps)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate * group["lr_factor"]
        self.guard.keep()
        sums = Sums(sources_of(self.stage.stream))
        records: list[list[str]] = []
        finite: list[torch.Tensor] = []
        for part in range(self.shares.accumulation):
            self.observer.at(f"waiting for data of step {self.step + 1}")
            batch = feed.next()
            self.observer.at(f"in the forward pass of step {self.step + 1}")
            torch.manual_seed(_seed(train.seed, self.step, part, world.rank))
            with self._precision(), guards.only_if(is_logged(self.config, self.step + 1, self.steps)):
                loss = self.stage.loss(self.engine, batch, train.seed)
                sums.add(loss, 1 / self.shares.accumulation, batch.source)
                finite.append(loss.loss.detach().isfinite())
                records.append([*batch.record])
                self.observer.at(f"in the backward pass of step {self.step + 1}")
                # Inside, because activation checkpointing runs parts of the forward pass again.
                self.engine.backward(loss.loss)
            if part < self.shares.accumulation - 1:
                self.engine.step()
        self._learn()
        self.observer.at(f"adding up the figures of step {self.step + 1}")
        votes = self._votes(preemption.requested)
        ballots = on_device([float(given) for given in votes.values()], sums.values.device)
        means = mean_over_ranks(torch.cat([sums.values, self.update.squares()[None], ballots]), world)
        skip = self.update.decide(means[sums.names.index("loss")], means[len(sums.names)])
        self.observer.at(f"in the update of step {self.step + 1}")
        self.engine.step()
        self.guard.restore(skip)
        self.step += 1
        if self.ema is not None:
            self.ema.update(self.step, skip)
        self.taken = Taken(self.step, rate, sums.names, [*votes], records, means, skip, finite)
        if self.taken.at_once:
            self._learn()

    def _learn(self) -> None:
        """What became of the last step that was queued: tell it, act on what the ranks voted for, and on a skipped update."""
        if self.taken is None:
            return
        taken, self.taken = self.taken, None
        # Where the device is while the host waits.
        self.observer.at(f"in the update of step {taken.step}")
        outcome = taken.outcome
        if outcome.skipped:
            self._skip(taken)
        else:
            self.skipped_in_row = 0
            self._tell(taken)
        self.leaves |= outcome.votes["leave"] > 0
        self.saves |= outcome.votes["save"] > 0
        if outcome.votes["written"] == 1:
            self.writer.advance()

    def _tell(self, taken: Taken, recordings: list[str] | None = None) -> None:
        """Report a step; ``recordings`` are those of a skipped one."""
        outcome = taken.outcome
        before, self.clock = self.clock, (time.perf_counter(), self.feed.waited_seconds)
        seconds, waited = (now - then for now, then in zip(self.clock, before, strict=True))
        figures = dict(outcome.figures)
        row: dict[str, Any] = {
            "step": taken.step,
            "loss": figures.pop("loss"),
            "parts": figures,
            "lr": taken.rate,
            "grad_norm": outcome.gradient_norm,
            "epochs_per_s": self.config.train.global_batch * self.stage.epochs_per_item / seconds,
            "data_wait": waited / seconds,
        }
        if recordings is not None:
            row |= {"skipped": True, "recordings": recordings}
        if self.world.is_main:
            self.observer.report(taken.step, row)

    def _precision(self) -> AbstractContextManager[Any]:
        return bf16_products(self.world.device) if self.config.deepspeed.compute_dtype == "bf16" else nullcontext()

    def _skip(self, taken: Taken) -> None:
        """Name and tell a step whose update was left out; stop after too many in a row."""
        self.skipped_in_row += 1
        seen = [name for record in taken.records for name in record]
        by_rank = gather_json(self.world, {"bad": taken.outcome.not_finite, "seen": seen})
        named = sorted({name for rank in by_rank for name in rank["bad"]})
        recordings = named or sorted({name for rank in by_rank for name in rank["seen"]})
        if self.skipped_in_row >= self.config.train.max_skipped:
            self._finish_saving()
            raise TrainingError(
                f"step {taken.step}: {self.skipped_in_row} steps in a row had a non-finite "
                f"{'loss' if named else 'gradient'} (train.max_skipped); recordings of the last one: "
                f"{', '.join(recordings)}; check these recordings, or lower the learning rate: {self._advice()}"
            )
        self._tell(taken, recordings)

    def _advice(self) -> str:
        """How to go on with a smaller learning rate, in words that can be typed."""
        rate, there = f"train.lr={self.config.train.lr / 10:g}", checkpoint.steps(self.folder.checkpoints)
        text = f"the same command with {rate} continues from step {there[0] if there else 0}"
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

            def conclude() -> dict[str, Any]:
                self.observer.goes_on("keeping the weights", seconds_for(self.bytes))
                best = self.best.keep_if_better(self.step, figures, state)
                stuck = self._is_stuck()
                self.observer.validated(self.step, figures, self.module, state, best)
                return {"figures": figures, "stuck": stuck}

            told = on_main(self.world, conclude)
            figures, self.stops = told["figures"], told["stuck"]
        self.module.train()
        return figures

    def _validation_loss(self) -> dict[str, float]:
        """``val/loss`` and its parts over held-out items, with the items of a step shared as in training."""
        stage, shares = self.stage, self.shares
        if not isinstance(stage, ValidatesLoss):
            return {}
        steps = min(stage.validation_items, len(stage.validation)) // shares.global_batch
        sums = Sums(sources_of(stage.validation))
        count = steps * shares.accumulation
        places = (divmod(number, shares.accumulation) for number in range(count))
        plan = ((shares.start(step, part, self.world.rank), shares.micro_batch) for step, part in places)
        self.engine.eval()
        with torch.no_grad(), Prefetcher(stage.validation, plan, device=self.world.device) as batches:
            for number, batch in enumerate(batches, 1):
                with self._precision():
                    loss = stage.loss(self.engine, batch, self.config.train.seed)
                sums.add(loss, 1 / count, batch.source)
                self.observer.goes_on(f"its loss, {number} of {count} parts")
        self.engine.train()
        return {f"val/{name}": value for name, value in sums.means(self.world).items()}

    def _save(self) -> None:
        self.observer.at(f"saving step {self.step}", patient=True)
        self.observer.goes_on(still_s=seconds_for(self.bytes))
        average_statistics(self.engine.module, self.world)
        self.writer.save(self.step, {} if self.ema is None else {EMA_FILE: self.ema.state()})
        self.saved_at, self.saves = time.monotonic(), False

    def _finish_saving(self) -> None:
        self.observer.at("waiting for the last checkpoint to be on the disk", patient=True)
        self.observer.goes_on(still_s=seconds_for(self.bytes))
        self.writer.finish()


def _seed(seed: int, step: int, part: int, rank: int) -> int:
    """A seed for this micro-step, from a fixed mixing of its coordinates (splitmix64)."""
    value = 0
    for number in (seed, step, part, rank):
        value = (value ^ number) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        value = (value ^ value >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        value ^= value >> 31
    return value >> 1
