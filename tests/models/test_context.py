"""Temporal contexts: they see their own sequence, as far as they may, at any length."""

from __future__ import annotations

import math

import pytest
import torch

from sleepfm.models.context import ContextConfig, build_context, sinusoid

KINDS = ("mamba", "lstm", "attention")
DIM = 32


def context(kind: str, bidirectional: bool = False) -> torch.nn.Module:
    torch.manual_seed(0)
    config = ContextConfig(kind=kind, bidirectional=bidirectional, d_state=8, headdim=16, heads=4, layers=2)
    return build_context(config, DIM).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_does_not_see_the_others_in_its_batch(kind: str) -> None:
    module = context(kind)
    x = torch.randn(3, 20, DIM)
    with torch.no_grad():
        torch.testing.assert_close(module(x)[1:2], module(x[1:2]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_only_a_bidirectional_context_looks_ahead(kind: str, bidirectional: bool) -> None:
    module = context(kind, bidirectional)
    x = torch.randn(1, 20, DIM)
    later = x.clone()
    later[:, 12:] += 3
    earlier = x.clone()
    earlier[:, :5] += 3
    with torch.no_grad():
        moved_by_the_future = (module(x)[:, :12] - module(later)[:, :12]).abs().max()
        moved_by_the_past = (module(x)[:, 5:] - module(earlier)[:, 5:]).abs().max()
    assert (moved_by_the_future > 1e-3) == bidirectional
    assert moved_by_the_past > 1e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_padded_sequence_equals_itself_without_padding(kind: str, bidirectional: bool) -> None:
    module = context(kind, bidirectional)
    x, lengths = torch.randn(4, 20, DIM), [20, 13, 1, 0]
    valid = torch.arange(20)[None] < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        together = module(x, valid)
        for row, length in enumerate(lengths[:3]):
            torch.testing.assert_close(together[row, :length], module(x[row : row + 1, :length])[0], atol=1e-5, rtol=1e-5)
    assert together.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_padding_takes_no_part_in_training(kind: str) -> None:
    """Neither in batch statistics nor, through them, in gradients: what stands there changes nothing."""
    x = torch.randn(3, 12, DIM)
    valid = torch.arange(12)[None] < torch.tensor([12, 7, 4])[:, None]
    found = []
    for filler in (0.0, 50.0):
        module = context(kind, bidirectional=True).train()
        padded = torch.where(valid[..., None], x, filler)
        output = module(padded, valid)[valid]
        output.square().mean().backward()
        found.append((output.detach(), module[0].norm.running_mean, [p.grad for p in module.parameters()]))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("kind", [*KINDS, "none"])
@pytest.mark.parametrize("length", [1, 20, 1400])
def test_any_length_up_to_a_whole_night(kind: str, length: int) -> None:
    with torch.no_grad():
        assert context(kind)(torch.randn(1, length, DIM)).shape == (1, length, DIM)


def test_no_context_is_no_context() -> None:
    x = torch.randn(2, 5, DIM)
    assert torch.equal(context("none")(x), x)


@pytest.mark.parametrize("dim", [8, 7])
def test_places_are_coded_by_sines_and_cosines(dim: int) -> None:
    """arXiv 1706.03762, section 3.5; sines first, then cosines."""
    code = sinusoid(5, dim, torch.device("cpu"))
    half = math.ceil(dim / 2)
    for place in range(5):
        angles = [place / 10_000 ** (2 * pair / dim) for pair in range(half)]
        expected = [*map(math.sin, angles), *map(math.cos, angles)][:dim]
        torch.testing.assert_close(code[place], torch.tensor(expected), atol=1e-6, rtol=1e-6)
