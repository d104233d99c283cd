"""SynthSleepNet: frozen backbones, own tokens per channel, and channels that are absent."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sleepfm.config import read_yaml
from sleepfm.constants import CHANNEL_MODALITY
from sleepfm.errors import ConfigError, ModelError
from sleepfm.models.build import build_model, model_config
from sleepfm.models.losses import nt_xent
from sleepfm.models.masking import keep_indices
from sleepfm.models.modality_dropout import drop_channels, drop_modalities
from sleepfm.models.neuronet import NeuroNetEncoder
from sleepfm.models.synthsleepnet import SynthSleepNet, SynthSleepNetConfig

CONFIGS = Path(__file__).parents[2] / "configs" / "models"
SIX = ("EEG_C3", "EEG_C4", "EOG_L", "EOG_R", "EMG_CHIN", "ECG")


def named(name: str, **changes: object) -> dict:
    return {**read_yaml(CONFIGS / f"{name}.yaml")["model"], **changes}


def build(**changes: object) -> SynthSleepNet:
    torch.manual_seed(0)
    model = build_model(named("synthsleepnet-tiny", **{"modality_dropout": 0.0, **changes}))
    assert isinstance(model, SynthSleepNet)
    return model


def shake_lora(model: SynthSleepNet) -> None:
    """Low-rank updates that are not zero, so that channels of a modality differ."""
    for name, parameter in model.named_parameters():
        if name.endswith("lora_b"):
            torch.nn.init.normal_(parameter, std=0.1)


def batch(model: SynthSleepNet, size: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    signals = torch.randn(size, len(model.channels), 3000)
    return signals, torch.ones(signals.shape[:2], dtype=torch.bool), torch.rand(size, *model.noise_shape)


def test_sizes_are_the_published_ones() -> None:
    for name, trained in (("synthsleepnet-paper", 28_292_352), ("synthsleepnet-base", 28_292_352 - 512)):
        with torch.device("meta"):
            model = build_model(named(name))
        # The 512 are the class token that the released model holds and never uses.
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trained
        assert sum(p.numel() for p in model.parameters()) == trained + 4 * 66_843_968


def test_shared_backbones_hold_half_the_paper_layout() -> None:
    with torch.device("meta"):
        shared = build_model(named("synthsleepnet-base", channels=SIX))
        copies = build_model(named("synthsleepnet-paper", channels=SIX))
    sizes = [sum(p.numel() for p in m.parameters() if not p.requires_grad) for m in (shared, copies)]
    assert sizes == [4 * 66_843_968, 6 * 66_843_968]


def test_construction_leaves_pretrained_encoders_bit_identical_and_lora_zero() -> None:
    config = SynthSleepNetConfig.model_validate(named("synthsleepnet-tiny", channels=SIX))
    encoders = {name: NeuroNetEncoder(config.encoder_config(name)) for name in config.modalities}
    for encoder in encoders.values():
        for buffer in encoder.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5)
    before = copy.deepcopy(encoders)
    x = torch.randn(2, 3000)
    model = SynthSleepNet(config, encoders)
    signals = x[:, None].expand(-1, 6, -1)
    tokens = model.eval().backbones(signals, torch.ones(2, 6, dtype=torch.bool), range(6))
    for name, original in before.items():
        held = model.backbones.encoders[name].state_dict()
        for key, value in original.state_dict().items():
            new = key.replace("attn.proj.", "attn.proj.base.")
            assert torch.equal(held[new], value), key
    for place, channel in enumerate(SIX):
        modality = CHANNEL_MODALITY[channel]
        torch.testing.assert_close(tokens[place], before[modality].eval()(x)[:, 1:], atol=1e-5, rtol=1e-5)


def test_frozen_backbones_do_not_move_in_training() -> None:
    model = build(channels=SIX).train()
    frozen = {k: v.clone() for k, v in model.backbones.state_dict().items() if "lora" not in k}
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(*batch(model)).loss.backward()
    optimiser.step()
    for key, value in frozen.items():
        assert torch.equal(model.backbones.state_dict()[key], value), key
    layers = list(model.backbones.modules())
    assert not any(layer.training for layer in layers if isinstance(layer, torch.nn.BatchNorm1d))
    assert all(layer.training for layer in layers if isinstance(layer, torch.nn.Dropout))


def test_every_trained_parameter_gets_a_gradient() -> None:
    model = build(channels=SIX)
    shake_lora(model)
    model(*batch(model)).loss.backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not missing


def test_a_decoder_reads_only_its_channels_tokens() -> None:
    model = build(channels=SIX)
    _, present, noise = batch(model)
    keep = keep_indices(noise, 16)
    fused = torch.randn(4, 6, 16, model.dim, requires_grad=True)
    targets = [torch.randn(4, 27, model.backbones.dim) for _ in SIX]
    for place in range(6):
        fused.grad = None
        only = torch.zeros_like(present)
        only[:, place] = True
        model._reconstruction(fused, targets, only, keep)[0].backward()
        touched = fused.grad.abs().sum((0, 2, 3)).ne(0)
        assert touched.tolist() == [k == place for k in range(6)]
        assert fused.grad[:, place].abs().sum((0, 2)).ne(0).all(), "every kept token reaches its decoder"


def test_loss_equals_a_slow_implementation() -> None:
    model = build().eval()
    shake_lora(model)
    signals, present, noise = batch(model, 3)
    output = model(signals, present, noise)
    keep = keep_indices(noise, 16)
    channels = model.channels
    targets = {}
    for place, name in enumerate(channels):
        encoder = model.backbones.encoders[("EEG", "EOG", "EMG", "ECG")[place]]
        targets[name] = encoder(signals[:, place])[:, 1:]
    errors, means = [], []
    for row in range(3):
        tokens = []
        for place, name in enumerate(channels):
            x = model.adapters[name](targets[name][row]) + model.modality_token[place] + model.position
            tokens += [x[frame] for frame in keep[row, place].tolist()]
        x = torch.stack(tokens)[None]
        for block in model.blocks:
            x = block(x)
        fused = model.norm(x)[0]
        means.append(fused.mean(0))
        for place, name in enumerate(channels):
            own = model.decoder_embed(fused[place * 16 : (place + 1) * 16])
            places = keep[row, place].tolist()
            x = torch.stack([own[places.index(f)] if f in places else model.mask_token for f in range(27)])
            x = (x + model.decoder_position)[None]
            for block in model.decoders[name].blocks:
                x = block(x)
            prediction = model.decoders[name].pred(model.decoder_norm(x))[0]
            errors += [(prediction[f] - targets[name][row, f]).square().mean() for f in range(27) if f not in places]
    assert len(errors) == 3 * 4 * 11
    torch.testing.assert_close(output.parts["reconstruction"], torch.stack(errors).mean(), atol=1e-5, rtol=1e-5)
    first = model.fusion_projector(torch.stack(means))
    contrast = [nt_xent(first, model.projectors[n](targets[n].mean(1)), 0.1) for n in channels]
    torch.testing.assert_close(output.parts["contrastive"], torch.stack(contrast).mean(), atol=1e-5, rtol=1e-5)


def test_an_absent_channel_changes_nothing() -> None:
    model = build(channels=SIX).train()
    shake_lora(model)
    for layer in model.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    signals, present, noise = batch(model)
    present[:, 3] = False
    small = build(channels=tuple(name for name in SIX if name != "EOG_R")).train()
    own = small.state_dict()
    for key, value in model.state_dict().items():
        if key in own:
            kept = value
            if key == "modality_token":
                kept = torch.cat([value[:3], value[4:]])
            elif "EOG" in key and "lora" in key:
                kept = value[:1]
            own[key] = kept.clone()
    small.load_state_dict(own)
    for layer in small.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    rest = [0, 1, 2, 4, 5]
    there = model(signals, present, noise)
    gone = small(signals[:, rest], present[:, rest], noise[:, rest])
    torch.testing.assert_close(there.loss, gone.loss, atol=1e-5, rtol=1e-5)
    model.eval(), small.eval()
    embedding = model.encode(signals, present)
    torch.testing.assert_close(embedding, small.encode(signals[:, rest], present[:, rest]), atol=1e-5, rtol=1e-5)
    signals[:, 3] = 1e6
    torch.testing.assert_close(model.encode(signals, present), embedding)
    torch.testing.assert_close(model.train()(signals, present, noise).loss, there.loss, atol=1e-5, rtol=1e-5)


def test_modality_dropout_equals_absence_of_what_it_drops() -> None:
    model = build(channels=SIX, modality_dropout=0.5).train()
    for layer in model.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    signals, present, noise = batch(model, 64)
    present[:8, :4] = False
    dropped = drop_modalities(present, noise[..., 27], SIX, 0.5)
    assert not (dropped & ~present).any()
    assert dropped.any(1).all(), "one modality always stays"
    assert torch.equal(dropped[8:, 0], dropped[8:, 1]), "channels of a modality go together"
    assert 0.35 < dropped[8:].float().mean() < 0.7
    expected = build(channels=SIX).train()
    expected.load_state_dict(model.state_dict())
    for layer in expected.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    found = model(signals, present, noise).loss
    torch.testing.assert_close(found, expected(signals, dropped, noise[..., :27]).loss, atol=1e-5, rtol=1e-5)
    full = model.eval()(signals, present, noise).loss
    torch.testing.assert_close(full, expected.eval()(signals, present, noise[..., :27]).loss, atol=1e-5, rtol=1e-5)


def test_what_is_needed_is_never_dropped_and_nothing_absent_comes_back() -> None:
    draws = torch.rand(200, 1, len(SIX), generator=torch.Generator().manual_seed(1))
    present = torch.rand(200, 3, len(SIX), generator=torch.Generator().manual_seed(2)) < 0.7
    kept = drop_modalities(present, draws, SIX, 0.9, {"EEG"})
    eeg = [CHANNEL_MODALITY[name] == "EEG" for name in SIX]
    assert torch.equal(kept[..., eeg], present[..., eeg])
    assert not (kept & ~present).any() and torch.equal(kept.any(-1), present.any(-1))
    assert (kept[..., [not own for own in eeg]].float().mean() < 0.3).item()
    # One draw for all epochs of a sequence.
    alike = drop_modalities(torch.ones_like(present), draws, SIX, 0.5, {"EEG"})
    assert torch.equal(alike, alike[:, :1].expand_as(alike))


def test_channels_are_dropped_one_by_one_and_each_modality_keeps_one() -> None:
    draws = torch.rand(400, 1, len(SIX), generator=torch.Generator().manual_seed(3))
    present = torch.rand(400, 3, len(SIX), generator=torch.Generator().manual_seed(4)) < 0.7
    kept = drop_channels(present, draws, SIX, 0.8)
    assert not (kept & ~present).any()
    for modality in {CHANNEL_MODALITY[name] for name in SIX}:
        own = [CHANNEL_MODALITY[name] == modality for name in SIX]
        assert torch.equal(kept[..., own].any(-1), present[..., own].any(-1)), "no modality goes"
        if sum(own) == 2:
            both = present[..., own].all(-1)
            alone = kept[..., own].sum(-1)[both] == 1
            assert 0.9 < alone.float().mean() < 0.99, "1 - 0.2 ** 2, since one of two always stays"
    assert torch.equal(drop_channels(present, draws, SIX, 0.0), present)


def test_mixed_presence_equals_row_by_row() -> None:
    model = build(channels=SIX).eval()
    shake_lora(model)
    signals, _, _ = batch(model, 5)
    present = torch.tensor(
        [[1, 1, 1, 1, 1, 1], [1, 0, 0, 0, 0, 0], [0, 1, 0, 1, 0, 1], [0, 0, 0, 0, 1, 1], [1, 1, 0, 0, 1, 0]]
    ).bool()
    together = model.encode(signals, present)
    for row in range(5):
        there = {name: signals[row : row + 1, c] for c, name in enumerate(SIX) if present[row, c]}
        torch.testing.assert_close(together[row], model.embed(there)[0], atol=1e-5, rtol=1e-5)
        backwards = dict(reversed(there.items()))
        torch.testing.assert_close(model.embed(backwards), model.embed(there))


def test_an_epoch_without_channels_is_finite_and_weighs_nothing() -> None:
    model = build()
    signals, present, noise = batch(model)
    present[1] = False
    output = model(signals, present, noise)
    output.loss.backward()
    assert output.loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert model.eval().encode(signals, present)[1].eq(0).all()


def test_channels_of_a_modality_share_weights_and_differ_by_lora() -> None:
    model = build(channels=("EOG_L", "EOG_R")).eval()
    shake_lora(model)
    x = torch.randn(2, 1, 3000).expand(-1, 2, -1)
    left, right = model.backbones(x, torch.ones(2, 2, dtype=torch.bool), range(2))
    assert not torch.allclose(left, right, atol=1e-3)
    assert list(model.backbones.encoders) == ["EOG"]


def test_layouts_compute_the_same() -> None:
    shared = build(channels=("EOG_L", "EOG_R")).eval()
    shake_lora(shared)
    copies = build(channels=("EOG_L", "EOG_R"), layout="copies").eval()
    state, weights = copies.state_dict(), shared.state_dict()
    for key in state:
        source = key.replace("encoders.EOG_L.", "encoders.EOG.").replace("encoders.EOG_R.", "encoders.EOG.")
        if key == "cls_token":
            continue
        value = weights[source]
        if "lora" in key:
            value = value[:1] if "EOG_L" in key else value[1:]
        state[key] = value.clone()
    copies.load_state_dict(state)
    arguments = batch(shared)
    torch.testing.assert_close(copies(*arguments).loss, shared(*arguments).loss, atol=1e-5, rtol=1e-5)


def test_a_batch_of_one_trains() -> None:
    model = build()
    output = model(*batch(model, 1))
    output.loss.backward()
    assert output.loss.isfinite() and output.parts["contrastive"] == 0


def test_configuration_round_trip_keeps_the_encoders() -> None:
    model = build(channels=SIX)
    again = build_model(model_config(model))
    assert set(model_config(model)["encoders"]) == {"EEG", "EOG", "EMG", "ECG"}
    assert model_config(again) == model_config(model)
    again.load_state_dict(model.state_dict())


def test_encoders_of_different_width_are_refused() -> None:
    config = SynthSleepNetConfig.model_validate(named("synthsleepnet-tiny"))
    encoders = {name: NeuroNetEncoder(config.encoder_config(name)) for name in config.modalities}
    wide = config.encoder_config("ECG")
    encoders["ECG"] = NeuroNetEncoder(wide.model_copy(update={"encoder": wide.encoder.model_copy(update={"dim": 64})}))
    with pytest.raises(ModelError, match=r"same frames x width.*ECG 27 x 64"):
        SynthSleepNet(config, encoders)
    with pytest.raises(ModelError, match="no encoder for ECG"):
        SynthSleepNet(config, {k: v for k, v in encoders.items() if k != "ECG"})


def test_wrong_shapes_and_channels_are_refused() -> None:
    model = build()
    signals, present, noise = batch(model, 2)
    expected = r"expected signals \[B, 4, 3000\] and presence \[B, 4\] for channels .*, found \[2, 3, 3000\] and \[2, 3\]"
    with pytest.raises(ModelError, match=expected):
        model(signals[:, :3], present[:, :3], noise)
    with pytest.raises(ModelError, match="expected noise"):
        model(signals, present, noise[:, :, :5])
    with pytest.raises(ModelError, match="unknown channels EEG_C3"):
        model.embed({"EEG_C3": torch.zeros(1, 3000)})
    with pytest.raises(ConfigError, match="no channel may occur twice"):
        build_model(named("synthsleepnet-tiny", channels=["ECG", "ECG"]))


def test_pretraining_reports_the_guards_against_collapse() -> None:
    model = build(channels=SIX)
    signals, present, noise = batch(model)
    present[:, 2] = False
    parts = model(signals, present, noise).parts
    guards = {"reconstruction_vs_mean", "alignment", "uniformity", "embedding_std", "effective_rank"}
    assert guards <= parts.keys()
    assert all(parts[name].isfinite() and not parts[name].requires_grad for name in guards)
    assert 1 <= parts["effective_rank"] <= 4 and 0 <= parts["alignment"] <= 4
