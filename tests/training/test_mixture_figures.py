"""Losses by source of a mixture: sums on the device, over ranks and micro-steps, without a wait."""

from __future__ import annotations

import math

import pytest
import torch
from host_reads import HostReads
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sleepfm.config import read_yaml
from sleepfm.models.build import build_model
from sleepfm.models.losses import LossOutput, nt_xent, nt_xent_by_pair
from sleepfm.models.noise import noise_for
from sleepfm.models.synthsleepnet import SynthSleepNet
from sleepfm.paths import config_root
from sleepfm.stages.classification_loss import classification_loss
from sleepfm.training.figures import Sums, by_source
from sleepfm.training.in_flight import Taken
from sleepfm.training.ranks.distributed import World
from sleepfm.training.stage import StepLoss

NAMES = ("large", "small", "rare")


def step(losses: Tensor, sources: Tensor, ranks: int, parts: int) -> dict[str, float]:
    """Figures of a step whose items are divided among ranks and micro-steps, as the engine adds them up."""
    values = torch.zeros(())
    for own, source in zip(losses.chunk(ranks), sources.chunk(ranks), strict=True):
        sums = Sums(NAMES)
        for micro, numbers in zip(own.chunk(parts), source.chunk(parts), strict=True):
            sums.add(StepLoss(micro.mean(), {"part": micro.max()}, micro), 1 / parts, numbers)
        values = values + sums.values / ranks
    return by_source(dict(zip(sums.names, values.tolist(), strict=True)))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 1000), st.sampled_from([1, 2, 3]), st.sampled_from([1, 2]))
def test_they_are_the_means_of_each_sources_items_on_any_number_of_ranks(seed: int, ranks: int, parts: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    losses, sources = torch.rand(12, generator=generator), torch.randint(3, (12,), generator=generator)
    expected = {f"loss/{name}": losses[sources == n].mean().item() for n, name in enumerate(NAMES) if (sources == n).any()}
    found = step(losses, sources, ranks, parts)
    assert {name: value for name, value in found.items() if "/" in name} == pytest.approx(expected)
    assert found["loss"] == pytest.approx(losses.mean().item()) and found.keys() - expected.keys() == {"loss", "part"}


def test_what_is_not_finite_stays_with_its_source() -> None:
    losses = torch.tensor([1.0, torch.nan, 3.0, torch.inf])
    found = step(losses, torch.tensor([0, 1, 0, 2]), 1, 1)
    assert found["loss/large"] == 2.0 and math.isnan(found["loss/small"]) and found["loss/rare"] == math.inf


def test_nothing_waits_and_the_host_learns_them_with_the_step() -> None:
    loss = StepLoss(torch.tensor(2.0), {}, torch.tensor([1.0, 3.0, 2.0, 2.0]))
    sums, source = Sums(NAMES), torch.tensor([0, 0, 1, 1])
    with HostReads() as reads:
        sums.add(loss, 1.0, source)
    assert not reads.found
    means = torch.cat([sums.values, torch.tensor([4.0], dtype=torch.float64)])
    taken = Taken(1, 0.1, sums.names, (), [["x"]], means, torch.tensor(False), [torch.tensor(True)])
    assert taken.outcome.figures == {"loss": 2.0, "loss/large": 2.0, "loss/small": 2.0}
    assert sums.means(World(0, 1, 0, 1)) == taken.outcome.figures


def test_without_sources_or_losses_of_items_there_are_none() -> None:
    for sums, loss, source in (
        (Sums(), StepLoss(torch.tensor(1.0), {}, torch.ones(2)), torch.tensor([0, 1])),
        (Sums(NAMES), StepLoss(torch.tensor(1.0)), torch.tensor([0, 1])),
        (Sums(NAMES), StepLoss(torch.tensor(1.0), {}, torch.ones(2)), None),
    ):
        sums.add(loss, 1.0, source)
        assert sums.names == ("loss",)


def test_losses_of_pairs_are_those_of_which_the_whole_is_made() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, 6, 8)
    loss, pairs = nt_xent_by_pair(a, b, 0.1)
    torch.testing.assert_close(pairs.mean(), loss)
    assert loss == nt_xent(a, b, 0.1) and not pairs.requires_grad
    valid = torch.tensor([True, True, False, True, True, True])
    loss, pairs = nt_xent_by_pair(a, b, 0.1, valid)
    torch.testing.assert_close(pairs.sum() / 5, loss)
    assert pairs[2] == 0
    # One pair by itself: both of its anchors against everyone else.
    rows = torch.nn.functional.normalize(torch.cat([a, b]), dim=1)
    similar = (rows @ rows.T / 0.1).masked_fill(torch.eye(12, dtype=torch.bool), float("-inf"))
    by_hand = torch.stack([similar[n].logsumexp(0) - similar[n, (n + 6) % 12] for n in (1, 7)]).mean()
    torch.testing.assert_close(nt_xent_by_pair(a, b, 0.1)[1][1], by_hand)


@pytest.mark.parametrize("name", ["neuronet", "synthsleepnet"])
def test_models_give_the_loss_of_every_item(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(read_yaml(config_root() / "models" / f"{name}-tiny.yaml")["model"]).eval()
    noise = noise_for(torch.arange(6), model.noise_shape, 3)
    present = torch.ones(6, len(model.channels), dtype=torch.bool)

    def loss(rows: slice, present: Tensor) -> LossOutput:
        if isinstance(model, SynthSleepNet):
            return model(signals[rows], present[rows], noise[rows])
        return model(signals[rows, 0], noise[rows])

    signals = torch.randn(6, len(model.channels), 3000)
    with torch.no_grad():
        whole = loss(slice(None), present)
        assert whole.items is not None and whole.items.shape == (6,) and not whole.items.requires_grad
        # With every channel there, the loss is the mean of them.
        torch.testing.assert_close(whole.items.mean(), whole.loss, rtol=1e-4, atol=1e-5)
        if isinstance(model, SynthSleepNet):
            # A channel that an item lacks does not count for it: its loss is no smaller for that.
            present[0, 1:] = False
            part = loss(slice(None), present).items
            assert part is not None and part[0] > 0.5 * whole.items[0] and part.isfinite().all()


def test_classification_gives_the_loss_of_every_sequence() -> None:
    logits, labels = torch.randn(4, 3, 2), torch.tensor([[0, 1, -1], [1, 1, 0], [-1, -1, -1], [0, 0, 1]])
    found = classification_loss(logits, labels, torch.tensor([1.0, 3.0]))
    assert found.items is not None
    torch.testing.assert_close(found.items.mean(), found.loss)
    assert found.items[2] == 0
    torch.testing.assert_close(found.items[1], classification_loss(logits[1:2], labels[1:2], torch.tensor([1.0, 3.0])).loss)
