"""Guards are of the rows of all ranks: any number of ranks gives the figures of one process with the whole batch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import spawn_ranks
from torch import Tensor

from sleepfm.models import guards

# Of the second, rows at even distances are looked at, and ranks hold different numbers of these.
ROWS = (12, 6 * 1031)


def drawn(rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Two sets of embeddings, which rows exist, the errors of tokens, and the tokens."""
    draws = torch.Generator().manual_seed(rows)
    a, b = torch.randn(2, rows, 16, generator=draws)
    there = torch.rand(rows, generator=draws) < 0.7
    return a, a + b, there, torch.rand(rows, generator=draws), torch.randn(rows, 3, 8, generator=draws) + 5


def figures(rank: int, world: int) -> dict[str, float]:
    found = {}
    for rows in ROWS:
        a, b, there, error, tokens = (x.chunk(world)[rank] for x in drawn(rows))
        for name, mask in (("all", None), ("some", there)):
            found |= {
                f"{rows}/{name}/std": guards.embedding_std(a, mask).item(),
                f"{rows}/{name}/rank": guards.effective_rank(a, mask).item(),
                f"{rows}/{name}/alignment": guards.alignment(a, b, mask).item(),
                f"{rows}/{name}/reconstruction": guards.relative_reconstruction(error, tokens, mask).item(),
            }
        found[f"{rows}/uniformity"] = guards.uniformity(a).item()
    return found


def _rank(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=world)
    Path(folder, f"{rank}.json").write_text(json.dumps(figures(rank, world)))


@pytest.mark.parametrize("world", [2, 3])
def test_figures_do_not_depend_on_the_number_of_ranks(world: int, tmp_path: Path) -> None:
    spawn_ranks(_rank, (world, str(tmp_path)), world)
    alone = figures(0, 1)
    for rank in range(world):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == alone
    # As many directions as there are, though no rank alone holds enough rows to tell.
    assert alone["12/all/rank"] > 6
