"""NeuroNet: sizes, masks, gradients, and independence of what else is in the batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sleepfm.config import read_yaml
from sleepfm.errors import ConfigError, ModelError
from sleepfm.models.build import build_model, model_config
from sleepfm.models.frame_encoder import FrameEncoder, FrameEncoderConfig
from sleepfm.models.losses import masked_reconstruction, nt_xent
from sleepfm.models.masking import hidden, keep_indices, kept_count
from sleepfm.models.neuronet import NeuroNet
from sleepfm.registry.package import load_weights, save_weights

CONFIGS = Path(__file__).parents[2] / "configs" / "models"


def named(name: str) -> dict:
    return read_yaml(CONFIGS / f"{name}.yaml")["model"]


@pytest.fixture
def tiny() -> NeuroNet:
    torch.manual_seed(0)
    model = build_model(named("neuronet-tiny"))
    assert isinstance(model, NeuroNet)
    return model


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "whole", "encoder"),
    [
        ("neuronet-base", 71_587_392, 66_843_968),
        ("neuronet-paper-b", 33_014_272, None),
        ("neuronet-paper-t", 14_880_640, None),
    ],
)
def test_sizes_are_the_published_ones(name: str, whole: int, encoder: int | None) -> None:
    with torch.device("meta"):
        model = build_model(named(name))
    assert isinstance(model, NeuroNet)
    assert parameters(model) == whole
    assert encoder is None or parameters(model.encoder) == encoder


def test_configuration_round_trip(tiny: NeuroNet) -> None:
    again = build_model(model_config(tiny))
    assert model_config(again) == model_config(tiny)
    again.load_state_dict(tiny.state_dict())


def test_frame_encoder_equals_a_loop_over_frames() -> None:
    torch.manual_seed(0)
    encoder = FrameEncoder(FrameEncoderConfig(stem=8, channels=(8, 16), strides=(1, 2), reduction=4), 400).eval()
    x = torch.randn(2, 3, 400)
    whole = encoder(x)
    for frame in range(3):
        torch.testing.assert_close(whole[:, frame], encoder(x[:, frame : frame + 1])[:, 0], atol=1e-5, rtol=1e-5)


def test_window_too_short_for_the_frame_encoder_is_refused() -> None:
    with pytest.raises(ModelError, match="window of 100 samples is too short"):
        FrameEncoder(FrameEncoderConfig(), 100)


def test_loss_equals_its_parts_computed_view_by_view(tiny: NeuroNet) -> None:
    tiny.eval()
    signals, noise = torch.randn(5, 3000), torch.rand(5, *tiny.noise_shape)
    output = tiny(signals, noise)
    features = tiny.encoder.features(signals)
    expected, classes = torch.zeros(()), []
    for view in range(2):
        keep = keep_indices(noise[:, view], 5)
        assert kept_count(27, 0.8) == 5
        rows = []
        for row in range(5):
            embedded = tiny.encoder.patch_embed(features[row]) + tiny.encoder.pos_embed[0, 1:]
            first = tiny.encoder.cls_token[0] + tiny.encoder.pos_embed[0, :1]
            x = torch.cat([first, embedded[keep[row]]])[None]
            for block in tiny.encoder.blocks:
                x = block(x)
            rows.append(tiny.encoder.norm(x)[0])
        latent = torch.stack(rows)
        classes.append(tiny.projector(latent[:, 0]))
        full = tiny.mask_token.repeat(5, 27, 1)
        visible = tiny.decoder_embed(latent[:, 1:])
        for row in range(5):
            for place, frame in enumerate(keep[row].tolist()):
                full[row, frame] = visible[row, place]
        full = full + tiny.decoder_pos_embed
        for block in tiny.decoder_blocks:
            full = block(full)
        prediction = tiny.decoder_pred(tiny.decoder_norm(full))
        errors = [
            (prediction[row, frame] - features[row, frame]).square().mean()
            for row in range(5)
            for frame in range(27)
            if frame not in keep[row].tolist()
        ]
        assert len(errors) == 5 * 22
        expected = expected + torch.stack(errors).mean()
    torch.testing.assert_close(output.parts["reconstruction"], expected.detach(), atol=1e-5, rtol=1e-5)
    contrast = nt_xent(classes[0], classes[1], tiny.config.temperature)
    torch.testing.assert_close(output.parts["contrastive"], contrast.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.loss, output.parts["reconstruction"] + tiny.config.alpha * output.parts["contrastive"])


def test_the_target_carries_no_gradient() -> None:
    target = torch.randn(2, 4, 3, requires_grad=True)
    prediction = torch.randn(2, 4, 3, requires_grad=True)
    mask = hidden(torch.tensor([[0], [2]]), 4)
    masked_reconstruction(prediction, target, mask).sum().backward()
    assert target.grad is None
    assert prediction.grad is not None
    assert prediction.grad[0, 0].eq(0).all() and prediction.grad[1, 0].ne(0).all()


def test_embedding_does_not_depend_on_the_batch(tiny: NeuroNet) -> None:
    tiny.eval()
    x = torch.randn(4, 3000)
    together = tiny.embed({"EEG_C4": x})
    alone = torch.cat([tiny.embed({"EEG_C4": row[None]}) for row in x])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_several_channels_are_averaged_in_any_order(tiny: NeuroNet) -> None:
    tiny.eval()
    a, b = torch.randn(2, 3000), torch.randn(2, 3000)
    both = tiny.embed({"EEG_C4": a, "EEG_C3": b})
    torch.testing.assert_close(both, tiny.embed({"EEG_C3": b, "EEG_C4": a}))
    torch.testing.assert_close(both, (tiny.embed({"EEG_C4": a}) + tiny.embed({"EEG_C3": b})) / 2, atol=1e-5, rtol=1e-5)


def test_embedding_is_the_mean_of_frame_tokens_without_the_class_token(tiny: NeuroNet) -> None:
    tiny.eval()
    x = torch.randn(2, 3000)
    torch.testing.assert_close(tiny.embed({"EEG_C3": x}), tiny.encoder(x)[:, 1:].mean(1), atol=1e-5, rtol=1e-5)


def test_a_batch_of_one_trains(tiny: NeuroNet) -> None:
    output = tiny(torch.randn(1, 3000), torch.rand(1, *tiny.noise_shape))
    output.loss.backward()
    assert output.parts["contrastive"] == 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in tiny.parameters() if p.requires_grad)


def test_losses_are_fp32_under_autocast(tiny: NeuroNet) -> None:
    signals, noise = torch.randn(4, 3000), torch.rand(4, *tiny.noise_shape)
    full = tiny.eval()(signals, noise).loss
    with torch.autocast("cpu", torch.bfloat16):
        half = tiny(signals, noise).loss
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    ("signals", "message"),
    [
        ({"EEG_C3": torch.zeros(1, 2999)}, r"signals\['EEG_C3'\]: expected \[B, 3000\].*found \[1, 2999\]"),
        ({"ECG": torch.zeros(1, 3000)}, "unknown channels ECG"),
        ({"EEG_C3": torch.full((1, 3000), float("nan"))}, "not finite"),
        ({}, "no channel"),
    ],
)
def test_wrong_input_is_refused(tiny: NeuroNet, signals: dict, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        tiny.embed(signals)


def test_channels_of_two_modalities_are_refused() -> None:
    with pytest.raises(ConfigError, match="one modality"):
        build_model({**named("neuronet-tiny"), "channels": ["EEG_C3", "ECG"]})


def test_noise_of_another_shape_is_refused(tiny: NeuroNet) -> None:
    with pytest.raises(ModelError, match="expected noise"):
        tiny(torch.zeros(2, 3000), torch.zeros(2, 1, 27))


def test_weights_of_other_dimensions_are_refused_with_both_shapes(tiny: NeuroNet, tmp_path: Path) -> None:
    wide = build_model({**named("neuronet-tiny"), "encoder": {"dim": 64, "depth": 2, "heads": 4}})
    save_weights(tmp_path / "model.safetensors", wide.state_dict())
    with pytest.raises(ModelError, match=r"model\.safetensors: does not fit.*\[1, 1, 64\].*\[1, 1, 128\]"):
        load_weights(tiny, tmp_path / "model.safetensors")


def test_a_configuration_whose_window_does_not_fit_is_refused_when_built() -> None:
    with pytest.raises(ModelError, match=r"window of 200 samples is too short.*kernel 3.*pool 16 leave -2"):
        build_model({**named("neuronet-base"), "window_s": 2.0})
    with pytest.raises(ModelError, match="frames of 4000 samples every 100 do not fit 3000"):
        build_model({**named("neuronet-tiny"), "window_s": 40.0})
