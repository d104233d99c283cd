"""The masked context: what is hidden stays hidden, padding weighs nothing, the encoder stays as it is, and it learns."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from sleepfm.config import read_yaml
from sleepfm.errors import ConfigError, ModelError
from sleepfm.models.build import build_model, model_config
from sleepfm.models.context import ContextConfig
from sleepfm.models.masked_context import MaskedContext, MaskedContextConfig
from sleepfm.paths import config_root


def encoder() -> torch.nn.Module:
    torch.manual_seed(0)
    values = read_yaml(config_root() / "models" / "neuronet-tiny.yaml")["model"]
    values["encoder"] = {"dim": 32, "depth": 1, "heads": 4}
    return build_model(values)


def masked(bidirectional: bool = True, **changes: object) -> MaskedContext:
    inner = encoder()
    context = ContextConfig(bidirectional=bidirectional, d_state=8, headdim=16)
    sizes: dict = {"length": 40, "span": 4, "mask_ratio": 0.4, **changes}
    return MaskedContext(MaskedContextConfig(context=context, **sizes), inner)


def night(model: MaskedContext, batch: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    valid = torch.arange(40)[None] < torch.tensor([40, 23, 9])[:batch, None]
    return torch.randn(batch, 40, model.dim), valid, torch.rand(batch, *model.noise_shape)


def hidden_places(model: MaskedContext, noise: Tensor) -> Tensor:
    """Written out: of ten spans of four epochs, the four with the highest draws are hidden."""
    places = torch.zeros(len(noise), 40, dtype=torch.bool)
    for row, draws in enumerate(noise.tolist()):
        for span in sorted(range(10), key=draws.__getitem__)[6:]:
            places[row, span * 4 : span * 4 + 4] = True
    return places


def test_loss_is_the_standardised_error_of_the_hidden_epochs_and_they_are_not_seen() -> None:
    model = masked().eval()
    model.standardise(torch.randn(model.dim), torch.rand(model.dim) + 0.5)
    x, valid, noise = night(model)
    places = hidden_places(model, noise) & valid
    loss = model(x, valid, noise).loss
    # With the targets moved, only the targets change: the prediction cannot have seen them.
    moved = torch.where(places[..., None], x + 1, x)
    prediction = model.predict(
        model.context.mix(torch.where(places[..., None], model.mask_token, model.context[0](x, valid & ~places)), valid)
    )
    for values in (x, moved):
        target = (values - model.mean) / model.std
        rows = [(prediction[n] - target[n])[places[n]].square().mean() if places[n].any() else torch.zeros(()) for n in range(3)]
        torch.testing.assert_close(model(values, valid, noise).loss, torch.stack(rows).mean())
    assert model(moved, valid, noise).loss != loss


def test_padding_changes_nothing() -> None:
    model = masked().train()
    x, valid, noise = night(model)
    other = copy.deepcopy(model)
    first = model(x, valid, noise).loss
    second = other(torch.where(valid[..., None], x, 100.0), valid, noise).loss
    assert first == second


def test_encoder_is_frozen_and_everything_else_trains() -> None:
    model = masked().train()
    before = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    x, valid, noise = night(model)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(x, valid, noise).loss.backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert without == []
    optimiser.step()
    assert all(torch.equal(value, before[name]) for name, value in model.encoder.state_dict().items())
    assert not model.encoder.training


def test_it_learns_to_fill_a_night_that_can_be_filled() -> None:
    """Slow waves of random phase: the rest of the night tells a masked span; the mean does not."""
    model = masked(length=40).train()
    generator = torch.Generator().manual_seed(1)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    valid = torch.ones(16, 40, dtype=torch.bool)
    model.standardise(torch.zeros(model.dim), torch.full((model.dim,), 0.5**0.5))
    losses = []
    for _ in range(120):
        phase = torch.rand(16, 1, model.dim, generator=generator) * 6.28
        x = torch.sin(torch.arange(40)[None, :, None] / 8 + phase)
        output = model(x, valid, torch.rand(16, *model.noise_shape, generator=generator))
        optimiser.zero_grad()
        output.loss.backward()
        optimiser.step()
        losses.append(output.parts["reconstruction_vs_mean"].item())
    assert losses[-1] < 0.5 < losses[0]


def test_a_model_is_rebuilt_from_its_configuration_and_weights() -> None:
    model = masked().eval()
    again = build_model(model_config(model)).eval()
    again.load_state_dict(model.state_dict())
    arguments = night(model)
    assert torch.equal(again(*arguments).loss, model(*arguments).loss)
    signals = {"EEG_C4": torch.randn(2, 3000)}
    assert torch.equal(again.embed(signals), model.encoder.embed(signals))


def test_wrong_shapes_and_kinds_are_refused() -> None:
    model = masked()
    x, valid, noise = night(model)
    with pytest.raises(ModelError, match=r"expected embeddings \[B, 40, 32\].*found \[3, 39, 32\]"):
        model(x[:, :39], valid[:, :39], noise)
    with pytest.raises(ModelError, match=r"expected noise \[3, 10\]"):
        model(x, valid, noise[:, :5])
    with pytest.raises(ConfigError, match="nothing to learn"):
        build_model({"kind": "context", "encoder": {"kind": "neuronet"}, "context": {"kind": "none"}})


@pytest.mark.parametrize("wrong", [{"mask_ratio": 0.0}, {"mask_ratio": 1.0}, {"length": 1}, {"span": 0}])
def test_what_leaves_nothing_to_see_or_to_fill_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        build_model({"kind": "context", "encoder": {"kind": "neuronet"}, **wrong})


def test_the_smallest_sequence_is_two_epochs_of_which_one_is_hidden() -> None:
    model = masked(length=2, span=1, mask_ratio=0.5)
    x, valid = torch.randn(3, 2, model.dim), torch.ones(3, 2, dtype=torch.bool)
    assert model.config.spans == 2
    assert model(x, valid, torch.rand(3, *model.noise_shape)).loss.isfinite()
