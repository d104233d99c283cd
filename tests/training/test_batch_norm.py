"""Batch normalisation over the rows of all ranks equals that of one process over the whole batch, over those rows that exist."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from host_reads import HostReads
from ranks import spawn_ranks
from torch import Tensor, nn

from sleepfm.models.normalisation import RowBatchNorm, mlp, only
from sleepfm.training.ranks.batch_norm import SynchronisedBatchNorm, synchronise

WIDTH = 5
# Rows of each of three ranks; length of a row, or None for rows that are vectors.
CASES: list[tuple[tuple[int, int, int], int | None]] = [
    ((4, 4, 4), None),
    ((3, 0, 6), None),
    ((1, 2, 0), None),
    ((0, 1, 0), None),
    ((0, 0, 0), None),
    ((2, 5, 1), 7),
    ((0, 3, 2), 7),
]
# Which of the rows of a case exist; of the others, all do.
EXISTING: dict[int, list[list[int]]] = {
    7: [[1, 0, 1, 1], [0, 0, 0, 0], [1, 1, 0, 1]],
    8: [[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]],
    9: [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
    10: [[0, 1], [], [1, 1, 0, 0]],
}
CASES += [((4, 4, 4), None), ((4, 4, 4), None), ((4, 4, 4), None), ((2, 0, 4), 7)]


def existing_of(case: int, part: slice) -> Tensor:
    """``[N]``, the rows of a part of a case that exist."""
    ranks = EXISTING.get(case) or [[1] * count for count in CASES[case][0]]
    return torch.tensor([flag for rank in ranks for flag in rank]).bool()[part]


def rows_of(case: int, step: int) -> Tensor:
    """The rows of all ranks of a case, far from zero so that careless sums of squares would show."""
    counts, length = CASES[case]
    shape = (sum(counts), WIDTH) if length is None else (sum(counts), WIDTH, length)
    return 20 + 3 * torch.randn(shape, generator=torch.Generator().manual_seed(100 * case + step))


def weights_of(case: int, step: int) -> Tensor:
    return torch.randn(rows_of(case, step).shape, generator=torch.Generator().manual_seed(7000 + 100 * case + step))


def plain(length: int | None) -> nn.Module:
    torch.manual_seed(0)
    norm = (RowBatchNorm if length is None else nn.BatchNorm1d)(WIDTH)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm.train()


def steps(norm: nn.Module, case: int, part: slice, dtype: torch.dtype) -> dict[str, Tensor]:
    """Two forward passes and a backward pass through both on a part of the rows: outputs, gradients and running statistics.

    A ``norm`` in fp64 gets the same rows, rounded to ``dtype`` first.
    """
    found: dict[str, Tensor] = {}
    kind = next(norm.parameters()).dtype
    valid = existing_of(case, part)
    # A whole batch in one process is of the rows that exist alone; what others become means nothing.
    chosen = valid if kind == torch.float64 else torch.ones_like(valid)
    inputs, loss = [], torch.zeros((), dtype=kind)
    for step in range(2):
        x = rows_of(case, step)[part][chosen].to(dtype)
        x = (x.double() if kind == torch.float64 else x).requires_grad_()
        with only(norm, valid) if case in EXISTING and kind != torch.float64 else nullcontext():
            out = norm(x)
        assert out.dtype == x.dtype
        loss = loss + (out.to(kind) * weights_of(case, step)[part][chosen])[valid[chosen]].sum()
        inputs.append(x)
        found[f"out{step}"] = out.detach().float()[valid[chosen]]
    loss.backward()
    for step, x in enumerate(inputs):
        assert x.grad is not None
        found[f"grad{step}"] = x.grad.float()[valid[chosen]]
    found |= {f"grad {name}": value.grad for name, value in norm.named_parameters() if value.grad is not None}
    return found | {name: value.clone().float() for name, value in norm.named_buffers()}


def rank_of_three(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=3)
    for dtype in (torch.float32, torch.bfloat16):
        for case, (counts, length) in enumerate(CASES):
            part = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
            found = steps(SynchronisedBatchNorm.of(plain(length)), case, part, dtype)
            torch.save(found, f"{folder}/{case}-{dtype}-{rank}.pt")


@pytest.mark.slow
def test_three_ranks_of_uneven_rows_are_one_process(tmp_path: Path) -> None:
    spawn_ranks(rank_of_three, (str(tmp_path),), 3)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        for case, (_, length) in enumerate(CASES):
            ranks = [torch.load(tmp_path / f"{case}-{dtype}-{rank}.pt", weights_only=True) for rank in range(3)]
            if not existing_of(case, slice(None)).any():
                assert all(torch.equal(found["running_mean"], torch.zeros(WIDTH)) for found in ranks)
                continue
            whole = steps(plain(length).double(), case, slice(None), dtype)
            for name, value in whole.items():
                if name.startswith(("out", "grad0", "grad1")):
                    mine = torch.cat([found[name] for found in ranks])
                elif name.startswith("grad "):
                    mine = torch.stack([found[name] for found in ranks if name in found]).sum(0)
                else:
                    mine = ranks[0][name]
                    assert all(torch.equal(found[name], mine) for found in ranks), "ranks must agree to the bit"
                    if name == "num_batches_tracked":
                        continue
                scale = value.abs().max().clamp(min=1)
                assert ((mine - value).abs() / scale).max() <= tolerance, (case, dtype, name)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("case", [0, 1, 3, 5, 7, 8, 10])
def test_one_rank_alone_is_torchs_own(alone: None, case: int) -> None:
    length = CASES[case][1]
    mine = steps(SynchronisedBatchNorm.of(plain(length)), case, slice(None), torch.float32)
    theirs = steps(plain(length).double(), case, slice(None), torch.float32)
    for name, value in theirs.items():
        torch.testing.assert_close(mine[name], value, rtol=1e-5, atol=1e-4, check_dtype=False)


def test_replacing_keeps_the_state_and_its_names(alone: None) -> None:
    module = nn.Sequential(mlp((4, 6, 6, 2)), nn.Conv1d(1, 3, 3), nn.BatchNorm1d(3)).train()
    before = module.state_dict()
    parameters = [id(parameter) for parameter in module.parameters()]
    synchronise(module)
    assert sum(isinstance(part, SynchronisedBatchNorm) for part in module.modules()) == 3
    assert module.state_dict().keys() == before.keys()
    assert [id(parameter) for parameter in module.parameters()] == parameters
    # In eval mode it needs no other rank.
    dist_free = module.eval()[2]
    x = torch.randn(2, 3, 4)
    torch.testing.assert_close(dist_free(x), nn.BatchNorm1d(3).eval()(x))


@pytest.mark.parametrize("masked", [False, True])
def test_a_synchronised_norm_does_not_wait_for_the_device(alone: None, masked: bool) -> None:
    norm, x = SynchronisedBatchNorm.of(plain(None)), torch.randn(6, WIDTH, requires_grad=True)
    with HostReads() as reads, only(norm, torch.tensor([True, False] * 3)) if masked else nullcontext():
        norm(x).square().sum().backward()
    assert reads.found == []
