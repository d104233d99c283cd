"""NT-Xent against loops, in chunks and over processes; masks; noise; guards; positions."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import spawn_ranks
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from sleepfm.models import guards, losses
from sleepfm.models.losses import nt_xent
from sleepfm.models.masking import hidden, keep_indices, kept_count, take, unshuffle
from sleepfm.models.noise import noise_for
from sleepfm.models.normalisation import RowBatchNorm
from sleepfm.models.position import sincos
from sleepfm.models.transformer import Block


def slow_nt_xent(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    rows = [*a, *b]
    total, count = torch.zeros(()), len(a)
    for i, anchor in enumerate(rows):
        similarity = [F.cosine_similarity(anchor, other, dim=0) / temperature for other in rows]
        positive = similarity[(i + count) % (2 * count)]
        others = torch.stack([s for j, s in enumerate(similarity) if j != i])
        total = total - positive + others.logsumexp(0)
    return total / (2 * count)


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_nt_xent_equals_a_loop(count: int, temperature: float) -> None:
    torch.manual_seed(count)
    a, b = (torch.randn(count, 6, requires_grad=True) for _ in range(2))
    fast, slow = nt_xent(a, b, temperature), slow_nt_xent(a, b, temperature)
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-5)
    for x, y in zip(torch.autograd.grad(fast, (a, b)), torch.autograd.grad(slow, (a, b)), strict=True):
        torch.testing.assert_close(x, y, atol=1e-4, rtol=1e-4)
    if count == 1:
        assert fast == 0


@pytest.mark.parametrize("tile", [3 * 40 + 1, 7])
def test_nt_xent_in_chunks_equals_whole(monkeypatch: pytest.MonkeyPatch, tile: int) -> None:
    a, b = (torch.randn(20, 6, requires_grad=True) for _ in range(2))
    whole = nt_xent(a, b, 0.1)
    expected = torch.autograd.grad(whole, (a, b))
    # Three anchors at a time; fewer similarities than a row has still take one.
    monkeypatch.setattr(losses, "TILE", tile)
    chunked = nt_xent(a, b, 0.1)
    torch.testing.assert_close(chunked, whole)
    for x, y in zip(torch.autograd.grad(chunked, (a, b)), expected, strict=True):
        torch.testing.assert_close(x, y)


def test_nt_xent_without_invalid_pairs_equals_the_valid_ones_alone() -> None:
    a, b = torch.randn(6, 4), torch.randn(6, 4)
    valid = torch.tensor([1, 0, 1, 1, 0, 1]).bool()
    torch.testing.assert_close(nt_xent(a, b, 0.1, valid), nt_xent(a[valid], b[valid], 0.1))
    assert nt_xent(a, b, 0.1, torch.zeros(6, dtype=torch.bool)) == 0


def _rank(rank: int, world: int, folder: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=world)
    pairs = load_file(f"{folder}/pairs.safetensors")
    a, b, valid = (pairs[name].chunk(world)[rank] for name in ("a", "b", "valid"))
    a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
    loss = nt_xent(a, b, 0.1, valid)
    loss.backward()
    save_file({"loss": loss.detach(), "a": a.grad, "b": b.grad}, f"{folder}/{rank}.safetensors")


def test_nt_xent_over_processes_equals_the_concatenated_batch(tmp_path: Path) -> None:
    a, b = torch.randn(8, 5, requires_grad=True), torch.randn(8, 5, requires_grad=True)
    valid = torch.tensor([1, 1, 0, 1, 1, 1, 1, 1]).bool()
    save_file({"a": a.detach(), "b": b.detach(), "valid": valid}, tmp_path / "pairs.safetensors")
    spawn_ranks(_rank, (2, str(tmp_path)), 2)
    parts = [load_file(tmp_path / f"{rank}.safetensors") for rank in range(2)]
    expected = nt_xent(a, b, 0.1, valid)
    expected.backward()
    torch.testing.assert_close(sum(part["loss"] for part in parts) / 2, expected.detach())
    for name, tensor in (("a", a), ("b", b)):
        # Data parallelism averages over ranks.
        torch.testing.assert_close(torch.cat([part[name] for part in parts]) / 2, tensor.grad)


@settings(max_examples=30, deadline=None)
@given(length=st.integers(1, 40), ratio=st.floats(0.05, 0.95), seed=st.integers(0, 2**31))
def test_masks_hide_the_stated_number_and_unshuffling_restores_order(length: int, ratio: float, seed: int) -> None:
    count = kept_count(length, ratio)
    assert count == max(1, math.floor(length * (1 - ratio)))
    noise = noise_for(torch.arange(3), (2, length), seed)
    keep = keep_indices(noise, count)
    mask = hidden(keep, length)
    assert mask.sum(-1).eq(length - count).all()
    tokens = torch.randn(3, 2, length, 4)
    fill = torch.full((4,), 7.0)
    back = unshuffle(take(tokens, keep), keep, fill, length)
    assert torch.equal(back[~mask], tokens[~mask])
    assert back[mask].eq(7).all()


def test_noise_belongs_to_the_item() -> None:
    items = torch.tensor([5, 1_000_000_007, 0, 5])
    noise = noise_for(items, (2, 27), 3)
    assert torch.equal(noise[0], noise[3])
    assert torch.equal(noise[1:2], noise_for(items[1:2], (2, 27), 3))
    assert not torch.equal(noise[0], noise_for(items[:1], (2, 27), 4)[0])
    # What models were trained with: masks stay the same from version to version.
    want = [[0.22189092636108398, 0.04873979091644287], [0.03581303358078003, 0.3717610836029053]]
    assert noise_for(torch.tensor([5, -1]), (2,), 7).tolist() == want
    many = noise_for(torch.arange(400), (64,), 0)
    assert many.min() >= 0 and many.max() < 1
    assert abs(many.mean() - 0.5) < 0.01 and abs(many.var() - 1 / 12) < 0.003


def test_guards_tell_a_collapse_from_a_spread() -> None:
    torch.manual_seed(0)
    spread = torch.randn(512, 16)
    collapsed = torch.ones(512, 16) + 1e-4 * torch.randn(512, 1)
    assert guards.effective_rank(spread) > 14 and guards.effective_rank(collapsed) < 1.5
    assert 0.9 < guards.embedding_std(spread) < 1.1 and guards.embedding_std(collapsed) < 1e-2
    assert guards.uniformity(spread) < -3 and guards.uniformity(collapsed) > -1e-3
    assert guards.alignment(spread, spread) == 0
    error = (spread - spread.mean(0)).square().mean(1)
    torch.testing.assert_close(guards.relative_reconstruction(error, spread), torch.ones(()))


def test_guards_see_a_collapse_through_autocast() -> None:
    torch.manual_seed(0)
    collapsed = torch.randn(64, 1) @ torch.randn(1, 512) + 1e-3 * torch.randn(64, 512)
    outside = guards.effective_rank(collapsed)
    with torch.autocast("cpu", torch.bfloat16):
        inside = guards.effective_rank(collapsed)
        assert guards.uniformity(collapsed).dtype == torch.float32
    assert inside == outside and inside < 2


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_guards_of_what_is_not_finite_do_not_raise(bad: float) -> None:
    x = torch.randn(8, 4)
    x[3, 2] = bad
    assert guards.effective_rank(x).isnan()
    for figure in (
        guards.embedding_std(x),
        guards.uniformity(x),
        guards.alignment(x, x),
        guards.relative_reconstruction(x[:, 0], x),
    ):
        assert figure.dtype == torch.float32


def test_effective_rank_equals_that_of_the_singular_values() -> None:
    x = torch.randn(9, 5) @ torch.diag(torch.tensor([5.0, 3.0, 1.0, 0.5, 0.1]))
    singular = torch.linalg.svdvals(x - x.mean(0))
    share = singular / singular.sum()
    torch.testing.assert_close(guards.effective_rank(x), (-(share * share.log()).sum()).exp(), atol=1e-3, rtol=1e-3)


def test_positions_are_those_of_the_transformer() -> None:
    found = sincos(27, 32, "1d")
    for position in (0, 1, 26):
        for pair in (0, 5, 15):
            angle = position / 10_000 ** (2 * pair / 32)  # arXiv 1706.03762, section 3.5
            assert found[position, pair] == pytest.approx(math.sin(angle), abs=1e-6)
            assert found[position, 16 + pair] == pytest.approx(math.cos(angle), abs=1e-6)


def test_positions() -> None:
    reference, ours = sincos(27, 32, "reference"), sincos(27, 32, "1d")
    assert reference[:, :16].std(0).eq(0).all() and reference[1:, 16:].std(0).gt(0).all()
    assert ours.std(0).gt(0).all()
    assert reference[5, 16] == torch.tensor(5.0).sin() and ours[5, 0] == torch.tensor(5.0).sin()


def test_masked_keys_take_no_part() -> None:
    block = Block(16, 4)
    x = torch.randn(2, 6, 16)
    keys = torch.tensor([[1, 1, 1, 1, 0, 0]]).bool().expand(2, -1)
    torch.testing.assert_close(block(x, keys)[:, :4], block(x[:, :4]), atol=1e-6, rtol=1e-5)


def test_two_rows_have_statistics_of_their_own_and_one_row_has_not() -> None:
    norm = RowBatchNorm(3)
    two = torch.tensor([[1.0, 5.0, -2.0], [3.0, 1.0, 2.0]])
    torch.testing.assert_close(norm(two), torch.tensor([[-1.0, 1.0, -1.0], [1.0, -1.0, 1.0]]), atol=1e-4, rtol=0)
    running = norm.running_mean.clone()
    torch.testing.assert_close(norm(two[:1]), (two[:1] - running) / (norm.running_var + norm.eps).sqrt())
    assert torch.equal(norm.running_mean, running)
