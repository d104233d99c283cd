"""Equal transformers side by side give what each gives by itself, in one graph, and only where they are compiled."""

from __future__ import annotations

import copy
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from test_compilation import MULTIMODAL
from torch import Tensor, nn

from sleepfm.models import recompute
from sleepfm.models.build import build_model
from sleepfm.models.lora import LoRALinear, adapters, add_lora
from sleepfm.models.normalisation import mlp, only
from sleepfm.models.recompute import compile_units, recompute_activations
from sleepfm.models.side_by_side import RowsSideBySide, SideBySide, side_by_side
from sleepfm.models.synthsleepnet import SynthSleepNet
from sleepfm.models.transformer import Blocks

PARTS, ROWS, FRAMES, DIM = 3, 4, 5, 8


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def transformers(channels: int = 0) -> tuple[list[Blocks], list[nn.LayerNorm]]:
    """With a norm each, or, frozen and with low-rank updates of ``channels`` channels each, with one of all."""
    torch.manual_seed(0)
    parts = [Blocks(2, DIM, 2) for _ in range(PARTS)]
    for part in parts if channels else []:
        part.requires_grad_(False)
        for layer in add_lora(part, [r".*attn\.proj"], channels, 2, 4.0, 0.0):
            nn.init.normal_(layer.lora_b)
    norms = [nn.LayerNorm(DIM) for _ in range(1 if channels else PARTS)]
    for norm in norms:
        nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    return parts, norms


def results(parts: list[Blocks], norms: list[nn.LayerNorm], heads: list[nn.Linear], together: bool) -> list[Tensor]:
    """Outputs, and gradients of the inputs and of all that trains."""
    x = drawn(PARTS, ROWS, FRAMES, DIM).requires_grad_()
    trained = [parameter for parameter in nn.ModuleList([*parts, *norms, *heads]).parameters() if parameter.requires_grad]
    layers = [layer for part in parts for layer in part.modules() if isinstance(layer, LoRALinear)]
    with adapters(nn.ModuleList(parts), range(layers[0].lora_a.shape[0]) if layers else []):
        if together:
            first, second = zip(*parts, strict=True)
            out = SideBySide(second, norms, heads)(SideBySide(first)(x))
        else:
            out = torch.stack(list(side_by_side(parts, norms, x.unbind(0), heads)))
    return [out.detach(), *torch.autograd.grad((out * drawn(*out.shape, seed=4)).sum(), [x, *trained])]


@pytest.mark.parametrize("channels", [0, 1, 2])
@pytest.mark.parametrize("with_heads", [False, True])
def test_they_give_what_each_gives_by_itself(channels: int, with_heads: bool) -> None:
    both = transformers(channels)
    heads = [nn.Linear(DIM, 3) for _ in range(PARTS)] if with_heads else []
    torch.testing.assert_close(results(*both, heads, True), results(*both, heads, False), rtol=1e-4, atol=1e-5)


def test_networks_on_rows_give_what_each_gives_by_itself_and_know_their_own_rows() -> None:
    torch.manual_seed(0)
    parts = [mlp((size, 6, 4)).train() for size in (DIM, DIM, 5)]
    alone = copy.deepcopy(parts)
    inputs = [drawn(ROWS, part[0].in_features, seed=place) for place, part in enumerate(parts)]
    valid = [torch.arange(ROWS) != place for place in range(len(parts))]
    found = []
    for networks, together in ((parts, True), (alone, False)):
        leaves = [x.clone().requires_grad_() for x in inputs]
        with ExitStack() as undo:
            for part, rows in zip(networks, valid, strict=True):
                undo.enter_context(only(part, rows))
            out = RowsSideBySide(networks)(*leaves) if together else [part(x) for part, x in zip(networks, leaves, strict=True)]
        held = [o[rows] for o, rows in zip(out, valid, strict=True)]
        trained = list(nn.ModuleList(networks).parameters())
        grads = torch.autograd.grad(sum((h * drawn(*h.shape)).sum() for h in held), [*leaves, *trained])
        found.append([*held, *grads, *nn.ModuleList(networks).buffers()])
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)


def test_networks_on_rows_are_one_graph() -> None:
    parts = [mlp((DIM, 6, 4)).train() for _ in range(PARTS)]
    found = torch._dynamo.explain(RowsSideBySide(parts))(*drawn(PARTS, ROWS, DIM).unbind(0))
    assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons


def test_they_are_one_graph() -> None:
    parts, norms = transformers(2)
    found = torch._dynamo.explain(SideBySide([part[0] for part in parts], norms, [nn.Linear(DIM, 3) for _ in parts]))(
        drawn(PARTS, ROWS, FRAMES, DIM)
    )
    assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons


def test_only_compiled_parts_that_keep_their_activations_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def noted(kind: Any) -> Any:
        return lambda unit, *args: seen.append(len(getattr(unit, "blocks", []))) or args[0]

    monkeypatch.setattr(recompute, "_compiled", noted)
    parts, norms = transformers()
    x = drawn(PARTS, ROWS, FRAMES, DIM).unbind(0)
    side_by_side(parts, norms, x)
    assert seen == []
    holder = nn.ModuleList(parts)
    compile_units(holder)
    side_by_side(parts, norms, x)
    assert seen == [PARTS] * 2
    with torch.no_grad():
        side_by_side(parts, norms, x)
    recompute_activations(holder)
    side_by_side(parts, norms, x)
    # The blocks by themselves.
    assert seen == [*[PARTS] * 2, *[0] * 2 * PARTS]


def test_a_compiled_model_joins_what_is_alike_to_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    joined: list[int] = []

    def traced(kind: Any) -> Any:
        """The forward pass of a unit as a compiler sees it."""

        def run(unit: nn.Module, *args: Any) -> Any:
            joined.append(len(getattr(unit, "blocks", [])))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(torch.compiler, "is_compiling", lambda: True)
                return recompute._FORWARDS[kind](unit, *args)

        return run

    monkeypatch.setattr(recompute, "_compiled", traced)
    torch.manual_seed(0)
    # Two modalities of one channel, and one of two. In fp64, in which only rounding stays small.
    plain = build_model({**MULTIMODAL, "channels": ["EEG_C3", "EEG_C4", "EOG_L", "ECG"]}).train().double()
    for name, parameter in plain.named_parameters():
        if name.endswith("lora_b"):
            nn.init.normal_(parameter, std=0.1)
    for layer in plain.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    compiled = copy.deepcopy(plain)
    compile_units(compiled)
    found = []
    for model in (plain, compiled):
        assert isinstance(model, SynthSleepNet)
        tokens = torch.stack(model.backbones(drawn(2, 4, 3000).double(), torch.ones(2, 4, dtype=torch.bool), range(4)))
        decoded = torch.stack(list(model.decode(range(4), drawn(4, 2, 7, 8).double().unbind(0))))
        (tokens.square().sum() + decoded.square().sum()).backward()
        found.append([tokens, decoded, *(p.grad for p in model.parameters() if p.grad is not None)])
    torch.testing.assert_close(*found, rtol=1e-7, atol=1e-8)
    assert [number for number in joined if number] == [2, 4]
