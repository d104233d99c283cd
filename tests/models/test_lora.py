"""Low-rank adaptation of a shared layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sleepfm.errors import ModelError
from sleepfm.models.lora import LoRALinear, adapters, add_lora


def layer(count: int = 3) -> LoRALinear:
    torch.manual_seed(0)
    return LoRALinear(nn.Linear(6, 5), count, rank=2, alpha=16, dropout=0.0)


def test_it_starts_equal_to_the_frozen_layer() -> None:
    adapted = layer()
    x = torch.randn(4, 7, 6)
    with adapters(adapted, [0, 1]):
        assert torch.equal(adapted(x), adapted.base(x))


@pytest.mark.parametrize("index", [(0, 1, 2), (2, 0), (1,)])
def test_every_row_uses_its_own_adapter(index: tuple[int, ...]) -> None:
    adapted = layer()
    nn.init.normal_(adapted.lora_b)
    x = torch.randn(6, 7, 6)
    with adapters(adapted, index):
        found = adapted(x)
    for row in range(6):
        which = index[row * len(index) // 6]
        update = adapted.lora_b[which] @ adapted.lora_a[which] * (16 / 2**0.5)
        expected = x[row] @ (adapted.base.weight + update).T + adapted.base.bias
        torch.testing.assert_close(found[row], expected)


def test_only_the_used_adapter_gets_a_gradient_and_the_base_none() -> None:
    adapted = layer()
    nn.init.normal_(adapted.lora_b)
    with adapters(adapted, [1]):
        adapted(torch.randn(2, 3, 6)).sum().backward()
    assert adapted.lora_a.grad is not None
    assert [bool(g.any()) for g in adapted.lora_a.grad] == [False, True, False]
    assert adapted.base.weight.grad is None


def test_rows_that_adapters_cannot_share_are_refused() -> None:
    adapted = layer()
    with pytest.raises(ModelError, match="4 rows need adapters that share them equally, found none named"):
        adapted(torch.randn(4, 7, 6))
    with adapters(adapted, [0, 1, 2]), pytest.raises(ModelError, match="found 3 of them"):
        adapted(torch.randn(4, 7, 6))


def test_one_adapter_needs_no_index_and_takes_any_shape() -> None:
    assert layer(1)(torch.randn(4, 6)).shape == (4, 5)


def test_targets_that_match_nothing_are_refused() -> None:
    with pytest.raises(ModelError, match="match no linear layer"):
        add_lora(nn.Sequential(nn.Linear(2, 2)), ("proj",), 1, 2, 4, 0.0)
