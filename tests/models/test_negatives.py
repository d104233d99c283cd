"""NT-Xent over ranks: all of them, nodes and groups against the loss of the same rows in one process, in fp32 and bf16; what is
sent; and how far bf16 is from fp64.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from pydantic import TypeAdapter, ValidationError
from ranks import spawn_ranks
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from sleepfm.errors import ConfigError
from sleepfm.models import losses
from sleepfm.models.losses import nt_xent
from sleepfm.models.negatives import Negatives, RankGroup, compared, group_size, sent_bytes

PAIRS, WIDTH, TEMPERATURE = 6, 24, 0.1
SETTINGS: dict[str, Negatives] = {
    "global": "global",
    "node": "node",
    "two": RankGroup(group=2),
    "four": RankGroup(group=4),
    "alone": RankGroup(group=1),
}
# Ranks of which no pair is valid, beside single pairs that are not.
EMPTY: dict[str, tuple[int, ...]] = {"all": (), "rank": (1,), "pair": (0, 1), "everybody": (0, 1, 2, 3)}
RANKS_A_NODE = 2


def cases(world: int) -> list[str]:
    names = [name for name in SETTINGS if name != "four" or world == 4]
    return [f"{name}/{empty}/{dtype}" for name, empty, dtype in itertools.product(names, EMPTY, ("fp32", "bf16"))]


def pairs_of(empty: str, ranks: int) -> tuple[Tensor, Tensor, Tensor]:
    draws = torch.Generator().manual_seed(len(empty))
    a, b = torch.randn(2, ranks * PAIRS, WIDTH, generator=draws)
    valid = torch.rand(ranks * PAIRS, generator=draws) < 0.8
    for rank in EMPTY[empty]:
        valid[rank * PAIRS : (rank + 1) * PAIRS] = False
    return a, a + b, valid


def plain(a: Tensor, b: Tensor, valid: Tensor) -> Tensor:
    """Of the valid pairs in one process, by torch's own cross entropy, in fp64."""
    a, b = a[valid].double(), b[valid].double()
    if len(a) == 0:
        return (a.sum() + b.sum()) * 0
    rows = F.normalize(torch.cat([a, b]), dim=1)
    similar = (rows @ rows.T / TEMPERATURE).masked_fill(torch.eye(len(rows)).bool(), float("-inf"))
    return F.cross_entropy(similar, (torch.arange(len(rows)) + len(a)) % len(rows))


class Sent(TorchDispatchMode):
    """Counts collectives of c10d, and the bytes that a rank sends in them by rings."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.bytes = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            assert func._schema.name == "c10d::_allgather_base_", func
            everyone, own = args[0], args[1]
            self.calls += 1
            self.bytes += everyone.nbytes - own.nbytes
        return func(*args, **(kwargs or {}))


def _rank(rank: int, world: int, folder: str) -> None:
    os.environ["LOCAL_SIZE"] = str(RANKS_A_NODE)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=world)
    found = {}
    for case in cases(world):
        name, empty, dtype = case.split("/")
        a, b, valid = (x.chunk(world)[rank].clone() for x in pairs_of(empty, world))
        a.requires_grad_(), b.requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"), Sent() as sent:
            loss = nt_xent(a, b, TEMPERATURE, valid, SETTINGS[name])
        # As the engine takes means over ranks.
        (loss / world).backward()
        with torch.no_grad(), Sent() as silent:
            nt_xent(a, b, TEMPERATURE, valid, SETTINGS[name])
        found |= {f"{case}/loss": loss.detach(), f"{case}/a": a.grad, f"{case}/b": b.grad}
        found[f"{case}/sent"] = torch.tensor([sent.calls, sent.bytes, silent.calls])
        # Process groups are made once.
        assert compared(SETTINGS[name]).group is compared(SETTINGS[name]).group
    save_file(found, f"{folder}/{rank}.safetensors")


@pytest.mark.parametrize("world", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_over_ranks_it_is_the_mean_over_groups_of_the_loss_in_one_process(tmp_path: Path, world: int) -> None:
    spawn_ranks(_rank, (world, str(tmp_path)), world)
    ranks = [load_file(tmp_path / f"{rank}.safetensors") for rank in range(world)]
    for case in cases(world):
        name, empty, dtype = case.split("/")
        size = group_size(SETTINGS[name], world, RANKS_A_NODE)
        a, b, valid = pairs_of(empty, world)
        a.requires_grad_(), b.requires_grad_()
        groups = world // size
        expected = torch.stack([plain(*part) for part in zip(*(x.chunk(groups) for x in (a, b, valid)), strict=True)]).mean()
        expected.backward()
        near: dict[str, Any] = {"atol": 1e-6, "rtol": 1e-5} if dtype == "fp32" else {"atol": 3e-3, "rtol": 3e-2}
        mean = torch.stack([rank[f"{case}/loss"] for rank in ranks]).mean()
        torch.testing.assert_close(mean, expected.detach().float(), **near, msg=case)
        for key, x in (("a", a), ("b", b)):
            torch.testing.assert_close(torch.cat([rank[f"{case}/{key}"] for rank in ranks]), x.grad, **near, msg=case)
        calls, sent, silent = ranks[0][f"{case}/sent"].tolist()
        # One message for embeddings with their validity, and with a gradient one for the normalisations.
        assert (calls, silent) == ((2, 1) if size > 1 else (0, 0)), case
        assert sent == sent_bytes(PAIRS, WIDTH, size, dtype == "bf16"), case


def test_at_a_thousand_ranks_little_is_sent() -> None:
    """Of a NeuroNet with 256 items a rank; what three passes of fp32 embeddings sent was 3.2 GB."""
    before = 3 * 1023 * 2 * 256 * 512 * 4
    assert before == pytest.approx(3.2e9, rel=0.01)
    assert sent_bytes(256, 512, 1024, bf16=True) < 0.18 * before
    for ranks in (8, 512):
        assert sent_bytes(256, 512, ranks, bf16=True) <= 0.3e9
    assert sent_bytes(8192 // 1024, 512, 1024, bf16=False) <= 0.3e9


@pytest.mark.parametrize("width", [256, 512])
@pytest.mark.parametrize("count", [1024, pytest.param(4096, marks=pytest.mark.slow)])
def test_bf16_is_near_fp64(count: int, width: int) -> None:
    """At the temperatures of SynthSleepNet and of NeuroNet: the loss to 1e-4 of it, the gradient to 4e-3."""
    torch.manual_seed(width)
    temperature = {256: 0.1, 512: 0.05}[width]
    a = torch.randn(count, width)
    b = a + 2 * torch.randn(count, width)
    a.requires_grad_(), b.requires_grad_()
    found = {}
    for dtype in ("fp32", "bf16"):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
            loss = nt_xent(a, b, temperature)
        found[dtype] = (loss.detach(), *torch.autograd.grad(loss, (a, b)))
    rows = F.normalize(torch.cat([a, b]).double(), dim=1)
    similar = (rows @ rows.T / temperature).fill_diagonal_(float("-inf"))
    expected = F.cross_entropy(similar, (torch.arange(2 * count) + count) % (2 * count))
    exact = (expected.detach(), *torch.autograd.grad(expected, (a, b)))
    for dtype, highest in (("fp32", (1e-6, 1e-5)), ("bf16", (1e-4, 4e-3))):
        errors = [float((x.double() - y.double()).norm() / y.double().norm()) for x, y in zip(found[dtype], exact, strict=True)]
        print(count, width, dtype, errors)
        assert errors[0] < highest[0] and max(errors[1:]) < highest[1], (dtype, errors)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_on_cuda_it_is_what_it_is_on_the_cpu(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "TILE_ON_GPU", 2**18)
    torch.manual_seed(0)
    a = torch.randn(512, 256)
    b = a + torch.randn(512, 256)
    valid = torch.rand(512) < 0.9
    found = []
    for device in ("cpu", "cuda"):
        x, y = (value.to(device).requires_grad_() for value in (a, b))
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bf16"):
            loss = nt_xent(x, y, 0.05, valid.to(device))
        found.append([value.cpu() for value in (loss.detach(), *torch.autograd.grad(loss, (x, y)))])
    near: dict[str, Any] = {"atol": 1e-6, "rtol": 1e-4} if dtype == "fp32" else {"atol": 1e-5, "rtol": 2e-2}
    for left, right in zip(*found, strict=True):
        torch.testing.assert_close(right, left, **near)


def test_groups_are_those_that_divide_the_ranks() -> None:
    assert [group_size(value, 16, 8) for value in ("global", "node", RankGroup(group=4), RankGroup(group=16))] == [16, 8, 4, 16]
    for value, said in (
        (RankGroup(group=3), r"\{group: 3\}"),
        (RankGroup(group=32), "32 ranks do not divide 16"),
        ("node", "node"),
    ):
        with pytest.raises(ConfigError, match=said):
            group_size(value, 16, 6)
    read: TypeAdapter[Negatives] = TypeAdapter(Negatives)
    assert read.validate_python({"group": 8}) == RankGroup(group=8)
    for bad in ("all", {"group": 0}, {"groups": 2}, 8):
        with pytest.raises(ValidationError):
            read.validate_python(bad)


def test_the_loss_is_compiled_in_one_graph() -> None:
    a, b, valid = pairs_of("rank", 2)
    a.requires_grad_()
    explained = torch._dynamo.explain(nt_xent)(a, b, TEMPERATURE, valid)
    assert explained.graph_count == 1, explained.break_reasons


def test_in_one_process_every_setting_is_the_whole_batch() -> None:
    a, b, valid = pairs_of("all", 1)
    for value in SETTINGS.values():
        assert compared(value).size == 1
        torch.testing.assert_close(nt_xent(a, b, TEMPERATURE, valid, value), plain(a, b, valid).float())
