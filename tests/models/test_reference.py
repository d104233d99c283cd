"""Converted checkpoints against the released code itself.

Runs with ``SLEEPFM_REFERENCE`` naming a checkout of github.com/dlcjfgmlnasa/SynthSleepNet and its imports (timm, peft, einops)
installed; skipped otherwise.
"""

from __future__ import annotations

import importlib
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sleepfm.constants import STAGE_NAMES
from sleepfm.models.downstream import Downstream
from sleepfm.models.mamba import Mamba2
from sleepfm.models.masking import hidden, keep_indices
from sleepfm.models.neuronet import NeuroNet
from sleepfm.models.reference.convert import convert
from sleepfm.models.reference.names import CHANNELS
from sleepfm.models.synthsleepnet import SynthSleepNet

CHECKOUT = os.environ.get("SLEEPFM_REFERENCE", "")
pytestmark = pytest.mark.skipif(not CHECKOUT, reason="SLEEPFM_REFERENCE names no checkout of the released code")

TOLERANCE = 1e-4
NAMES = ("EEG_C4", "EEG_C3", "EOG_Left", "ECG")
# Three-second frames keep the released frame encoder small; its widths are fixed.
UNIMODAL = {
    "fs": 100,
    "second": 30,
    "time_window": 3,
    "time_step": 1,
    "encoder_embed_dim": 64,
    "encoder_heads": 8,
    "encoder_depths": 4,
}
DECODER = {"decoder_embed_dim": 32, "decoder_heads": 8, "decoder_depths": 2}
FUSION = {
    "backbone_embed_dim": 64,
    "num_backbone_frames": 28,
    "encoder_embed_dim": 64,
    "encoder_heads": 8,
    "encoder_depths": 4,
    **DECODER,
    "projection_hidden": [48, 24],
    "temperature": 0.1,
}
LORA = {"lora_r": 4, "lora_alpha": 16, "lora_dropout": 0.05}


@pytest.fixture(scope="module", autouse=True)
def released() -> Iterator[None]:
    """The checkout importable. Its Mamba-2 needs CUDA; this package's, held equal elsewhere, stands in."""
    for name in ("timm", "peft", "einops"):
        pytest.importorskip(name)
    stand_in = types.ModuleType("mamba_ssm")
    stand_in.Mamba2 = Mamba2  # type: ignore[attr-defined]
    before = set(sys.modules)
    sys.path.insert(0, CHECKOUT)
    sys.modules["mamba_ssm"] = stand_in
    yield
    sys.path.remove(CHECKOUT)
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("models", "downstream", "mamba_ssm"):
            del sys.modules[name]


def load(name: str) -> Any:
    return importlib.import_module(name)


def settle(module: nn.Module, seed: int) -> nn.Module:
    """Statistics and low-rank updates as after training, so that nothing is trivially equal."""
    generator = torch.Generator().manual_seed(seed)
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1, generator=generator)
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5, generator=generator)
    for name, parameter in module.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.02, generator=generator)
    return module.eval()


def adapted(seed: int) -> nn.Module:
    peft = load("peft")
    config = peft.LoraConfig(
        r=4,
        lora_alpha=16,
        lora_dropout=0.05,
        bias="none",
        use_rslora=True,
        init_lora_weights="gaussian",
        target_modules=["attn.proj"],
    )
    encoder = load("models.neuronet.model").NeuroNetEncoder(**UNIMODAL)
    nn.init.normal_(encoder.cls_token, generator=torch.Generator().manual_seed(seed))
    nn.init.normal_(encoder.pos_embed, generator=torch.Generator().manual_seed(seed))
    return peft.get_peft_model(model=encoder, peft_config=config)


@pytest.fixture(scope="module")
def multimodal(tmp_path_factory: pytest.TempPathFactory, released: None) -> tuple[Path, nn.Module]:
    torch.manual_seed(3)
    encoders = {name: adapted(seed) for seed, name in enumerate(NAMES)}
    model = settle(load("models.unified.model").SynthSleepNet(encoders, **FUSION), 4)
    path = tmp_path_factory.mktemp("multimodal") / "best_model.pth"
    torch.save(
        {
            "model_name": "SleepFoundationModal",
            "ch_names": list(NAMES),
            "lora_parameter": LORA,
            "unimodal_parameter": UNIMODAL,
            "multimodal_parameter": FUSION,
            "multimodal_model_state": model.state_dict(),
            "hyperparameter": {"alpha": 1.0, "mask_ratio": 0.4},
        },
        path,
    )
    return path, model


def signals(batch: int, *axes: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(9)
    return {name: torch.randn(batch, *axes, 3000, generator=generator) for name in NAMES}


def canonical(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {CHANNELS[name]: value for name, value in values.items()}


@pytest.mark.parametrize("window", [3, 4])
def test_neuronet_tokens_and_losses(tmp_path: Path, window: int) -> None:
    torch.manual_seed(1)
    sizes = UNIMODAL | DECODER | {"time_window": window, "projection_hidden": [32, 16], "temperature": 0.05}
    model = settle(load("models.neuronet.model").NeuroNet(**sizes), 2)
    path = tmp_path / "best_model.pth"
    torch.save({"model_name": "NeuroNet-EOG", "model_state": model.state_dict(), "model_parameter": sizes}, path)
    ours = convert(path).module
    assert isinstance(ours, NeuroNet)
    assert ours.channels == ("EOG_L", "EOG_R")
    x = torch.randn(3, 3000)
    with torch.no_grad():
        features = model.frame_backbone(model.make_frame(x))
        tokens = model.autoencoder.forward_encoder(features, mask_ratio=0)
        # The released masking shuffles even when it keeps everything.
        noise = torch.rand(2, 3, ours.config.frames)
        torch.testing.assert_close(ours.encoder.features(x), features, atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(ours.embed({"EOG_L": x}), tokens[0][:, 1:].mean(1), atol=TOLERANCE, rtol=0)

        queue = list(noise)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "rand", lambda *_, **__: queue.pop(0))
            reconstruction, contrastive, _ = model(x, mask_ratio=0.8)
        found = ours(x, noise.transpose(0, 1))
    torch.testing.assert_close(found.parts["reconstruction"], reconstruction, atol=TOLERANCE, rtol=1e-5)
    torch.testing.assert_close(found.parts["contrastive"], contrastive, atol=TOLERANCE, rtol=1e-5)


def test_multimodal_embedding_and_loss(multimodal: tuple[Path, nn.Module]) -> None:
    path, model = multimodal
    ours = convert(path).module
    assert isinstance(ours, SynthSleepNet)
    assert ours.channels == ("EEG_C3", "EEG_C4", "EOG_L", "ECG")
    x = signals(3)
    stacked, present = torch.stack(list(x.values()), 1), torch.ones(3, 4, dtype=torch.bool)
    noise = torch.rand(3, *ours.noise_shape)
    with torch.no_grad():
        expected = model.forward_multimodal_embed(x)
        torch.testing.assert_close(ours.embed(canonical(x)), expected, atol=TOLERANCE, rtol=0)

        queue = list(noise.unbind(1))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "rand", lambda *_, **__: queue.pop(0))
            (fused, masks, restores), tokens = model.forward_encoder(x, mask_ratio=0.4)
        # The released decoder reads other channels' tokens; handed each its own, its layers agree.
        keep = keep_indices(noise, 16)
        for place, name in enumerate(NAMES):
            assert torch.equal(hidden(keep[:, place], 28), masks[name].bool())
            own = fused[:, place * 16 : (place + 1) * 16]
            model.modal_count = 1
            padded = torch.cat([own, own[:, :1]], dim=1)  # it takes one token away for a class token
            theirs = _decode(model, name, padded, restores[name])
            (decoded,) = ours.decode([place], [ours.decoder_tokens(own, keep[:, place])])
            torch.testing.assert_close(decoded, theirs, atol=TOLERANCE, rtol=0)
        fusion = model.fusion_projector(fused.mean(1))
        contrasts = [
            model.contrastive_loss(fusion, model.backbone_projector_dict[name](tokens[name][:, 1:].mean(1)))[0] for name in NAMES
        ]
        found = ours(stacked, present, noise)
    torch.testing.assert_close(found.parts["contrastive"], torch.stack(contrasts).mean(), atol=TOLERANCE, rtol=1e-5)


def _decode(model: Any, name: str, tokens: torch.Tensor, restore: torch.Tensor) -> torch.Tensor:
    return model.forward_decoder(tokens, {name: restore})


@pytest.mark.parametrize("with_pretrained", [True, False])
def test_linear_probing(tmp_path: Path, multimodal: tuple[Path, nn.Module], with_pretrained: bool) -> None:
    torch.manual_seed(5)
    model = settle(load("downstream.linear_probing.model").Model(str(multimodal[0]), 5), 6)
    path = tmp_path / "best_model.pth"
    torch.save({"model_name": "MultiModal_Linear_Probing", "model_state": model.state_dict()}, path)
    ours = convert(path, "stage", STAGE_NAMES, multimodal[0] if with_pretrained else None).module
    assert isinstance(ours, Downstream)
    x = signals(3)
    with torch.no_grad():
        torch.testing.assert_close(ours.embed(canonical(x)), model.backbone(x), atol=TOLERANCE, rtol=0)
        sequence = torch.stack(list(x.values()), 1)[:, None]
        logits = ours(sequence, torch.ones(3, 1, 4, dtype=torch.bool))[:, 0]
        torch.testing.assert_close(logits, model(x), atol=TOLERANCE, rtol=0)


def test_fine_tuning_with_temporal_context(tmp_path: Path, multimodal: tuple[Path, nn.Module]) -> None:
    torch.manual_seed(7)
    model = settle(load("downstream.fine_tuning.model").Model(str(multimodal[0]), 5, 2), 8)
    path = tmp_path / "best_model.pth"
    torch.save({"model_name": "MultiModal_Fine_Tuning", "model_state": model.state_dict()}, path)
    ours = convert(path, "apnea", ("none", "apnea")).module
    x = signals(2, 5)
    with torch.no_grad():
        found = ours(torch.stack(list(x.values()), 2), torch.ones(2, 5, 4, dtype=torch.bool))
        torch.testing.assert_close(found, model(x), atol=TOLERANCE, rtol=0)
