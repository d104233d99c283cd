"""Frozen backbones compute through a twin with folded batch norms, and stay themselves to the bit."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from test_compilation import MULTIMODAL
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sleepfm.models.build import build_model
from sleepfm.models.folding import Folded
from sleepfm.models.recompute import compile_units, recompute_activations


def model(layout: str = "shared") -> Any:
    """With batch statistics and affine maps that are not those of a fresh model, and low-rank updates that do something."""
    torch.manual_seed(0)
    built = build_model({**MULTIMODAL, "layout": layout, "modality_dropout": 0.0}).train()
    for part in built.backbones.modules():
        if isinstance(part, nn.BatchNorm1d):
            nn.init.normal_(part.running_mean, std=0.3)
            nn.init.uniform_(part.running_var, 0.3, 2.0)
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.3)
    for name, parameter in built.named_parameters():
        if name.endswith("lora_b"):
            nn.init.normal_(parameter, std=0.1)
    return built


def unfolded(built: Any) -> Any:
    """The same model, whose backbones compute as they are."""
    plain = copy.deepcopy(built)
    for name, encoder in plain.backbones.encoders.items():
        plain.backbones._folded[name] = lambda encoder=encoder: encoder
    return plain


def inputs(built: Any) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    signals = torch.randn(4, len(built.channels), 3000, generator=generator)
    present = torch.tensor([[True, True, True], [True, False, True], [False, True, True], [True, True, False]])
    return signals, present, torch.rand(4, *built.noise_shape, generator=generator)


def step(built: Any, bf16: bool) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(2)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = built(*inputs(built)).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in built.named_parameters() if p.grad is not None}


class Operations(TorchDispatchMode):
    """The names of the operations inside, and how many casts of tensors that stay in memory there are."""

    def __init__(self, frozen: list[Tensor]) -> None:
        super().__init__()
        self.names: list[str] = []
        self.casts_of_frozen = 0
        self._frozen = {id(tensor) for tensor in frozen}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        self.names.append(name)
        self.casts_of_frozen += name == "_to_copy" and id(args[0]) in self._frozen
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("layout", ["shared", "copies"])
def test_folded_backbones_give_the_same_tokens_and_gradients(layout: str) -> None:
    # In fp64, in which only rounding stays small: adapters get their gradients through several normalisations.
    folded = model(layout).double()
    found = []
    for built in (unfolded(folded), folded):
        signals, present, _ = inputs(built)
        torch.manual_seed(2)
        tokens = torch.stack(built.backbones(signals.double(), present, range(3)))
        tokens.square().sum().backward()
        found.append((tokens.detach(), {n: p.grad.clone() for n, p in built.backbones.named_parameters() if p.grad is not None}))
    (tokens, gradients), (others, other_gradients) = found
    torch.testing.assert_close(others, tokens, rtol=1e-9, atol=1e-9)
    assert gradients.keys() == other_gradients.keys() and all("lora" in name for name in gradients)
    for name, gradient in gradients.items():
        torch.testing.assert_close(other_gradients[name], gradient, rtol=1e-8, atol=1e-8)


def test_folded_backbones_give_the_same_loss() -> None:
    folded = model()
    torch.testing.assert_close(step(unfolded(folded), False)[0], step(folded, False)[0], rtol=1e-5, atol=1e-6)


def test_in_bf16_they_are_as_near_to_fp32_as_unfolded_ones() -> None:
    folded = model().eval()
    plain = unfolded(folded)
    signals, present, _ = inputs(folded)
    with torch.no_grad():
        exact = plain.encode(signals, present)
        with torch.autocast("cpu", torch.bfloat16):
            error, error_plain = ((m.encode(signals, present) - exact).norm() for m in (folded, plain))
    assert 0 < error < 1.5 * error_plain < 0.1 * exact.norm()


def test_a_step_normalises_nothing_in_a_backbone_and_casts_no_frozen_weight() -> None:
    counts = []
    for built in (unfolded(model()), model()):
        products = [
            p for m in built.backbones.modules() if isinstance(m, (nn.Linear, nn.Conv1d)) for p in m.parameters(recurse=False)
        ]
        step(built, True)
        with Operations(products) as operations, torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            built.backbones(*inputs(built)[:2], range(3))
        counts.append((sum("batch_norm" in name for name in operations.names), operations.casts_of_frozen))
    assert all(counts[0]) and counts[1] == (0, 0)


def test_the_encoders_stay_to_the_bit_and_alone_are_in_the_state() -> None:
    built = model()
    before = {name: value.clone() for name, value in built.state_dict().items()}
    step(built, True)
    frozen = {name for name, p in built.named_parameters() if not p.requires_grad}
    assert list(built.state_dict()) == list(before)
    for name, value in built.state_dict().items():
        if name in frozen or ("backbones" in name and "running" in name):
            assert value.dtype == before[name].dtype and torch.equal(value, before[name]), name


def test_the_twin_shares_what_trains() -> None:
    built = model()
    encoder = built.backbones.encoders["EEG"]
    with torch.autocast("cpu", torch.bfloat16):
        twin = Folded(encoder)()
    trained = {id(p) for p in encoder.parameters() if p.requires_grad}
    assert trained and trained == {id(p) for p in twin.parameters() if p.requires_grad}
    types = {p.dtype for m in twin.modules() if isinstance(m, (nn.Linear, nn.Conv1d)) for p in m.parameters(recurse=False)}
    assert types == {torch.bfloat16}
    # In fp32 nothing but convolutions is held twice.
    shared = {id(p) for p in encoder.parameters()}
    other = Folded(encoder)()
    own = [p for m in other.modules() if isinstance(m, nn.Conv1d) for p in m.parameters(recurse=False)]
    assert {id(p) for p in other.parameters()} - shared == {id(p) for p in own}


def change_weights(encoder: Any) -> None:
    encoder.load_state_dict({name: value * 1.5 for name, value in encoder.state_dict().items()})


def write_a_statistic(encoder: Any) -> None:
    encoder.frame_backbone.stem[1].running_mean.add_(0.1)


def replace_a_part(encoder: Any) -> None:
    encoder.frame_backbone.feature_layer[2] = nn.Linear(16, 16).requires_grad_(False)


def compiled(encoder: Any) -> None:
    compile_units(encoder)


def forgetful(encoder: Any) -> None:
    recompute_activations(encoder)


def widened(encoder: Any) -> None:
    encoder.double()


@pytest.mark.parametrize("change", [change_weights, write_a_statistic, replace_a_part, compiled, forgetful, widened])
def test_a_change_of_the_encoder_makes_another_twin(change: Any) -> None:
    encoder = model().backbones.encoders["ECG"]
    folded = Folded(encoder)
    first = folded()
    assert first is folded() is not encoder
    with torch.no_grad():
        change(encoder)
    second = folded()
    assert second is not first and second is folded()


def test_training_the_low_rank_updates_makes_no_other_twin() -> None:
    encoder = model().backbones.encoders["ECG"]
    folded = Folded(encoder)
    first = folded()
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    assert folded() is first


def test_dropout_is_of_the_mode_that_the_model_is_in() -> None:
    """Whichever mode it was in when the twin was made."""
    built = model()
    assert any(isinstance(part, nn.Dropout) and part.p for part in built.backbones.modules())
    signals, present, _ = inputs(built)

    def tokens(seed: int) -> Tensor:
        torch.manual_seed(seed)
        with torch.no_grad():
            return torch.stack(built.backbones(signals, present, range(len(built.channels))))

    for _ in range(2):
        built.train()
        assert not torch.equal(tokens(0), tokens(1))
        built.eval()
        assert torch.equal(tokens(0), tokens(1))
        torch.testing.assert_close(
            tokens(0), torch.stack(unfolded(built).backbones(signals, present, range(len(built.channels)))), atol=1e-4, rtol=1e-4
        )


def test_an_encoder_that_trains_is_not_folded() -> None:
    encoder = model().backbones.encoders["ECG"]
    folded = Folded(encoder)
    assert folded() is not encoder
    encoder.requires_grad_(True)
    assert folded() is encoder
    encoder.requires_grad_(False)
    assert folded() is not encoder
    encoder.frame_backbone.stem[1].train()
    assert folded() is encoder


def test_a_twin_made_in_inference_mode_trains() -> None:
    built = model()
    with torch.inference_mode():
        built.encode(*inputs(built)[:2])
    step(built, False)
