"""What the models compute, over rows that exist only: selected by masks, put back by masks, and counted on the host.

Slow on a device and without weights for what is absent: an implementation that the models', which compute every row, are held to.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sleepfm.models import guards
from sleepfm.models.downstream import Downstream
from sleepfm.models.lora import adapters
from sleepfm.models.losses import LossOutput, masked_reconstruction, nt_xent
from sleepfm.models.masking import hidden, keep_indices, kept_count, take
from sleepfm.models.neuronet import NeuroNet
from sleepfm.models.synthsleepnet import SynthSleepNet


def spread(rows: Tensor, mask: Tensor) -> Tensor:
    """``rows`` ``[N, ...]`` at the ``N`` True places of ``mask``, zeros elsewhere."""
    return rows.new_zeros(*mask.shape, *rows.shape[1:]).index_put((mask,), rows)


def on_valid(module: nn.Module, x: Tensor, valid: Tensor | None) -> Tensor:
    """``sleepfm.models.normalisation.on_valid``: ``module`` sees no row but those that exist."""
    if valid is None:
        return module(x.flatten(0, -2)).unflatten(0, x.shape[:-1])
    return spread(module(x[valid]), valid)


def synthsleepnet_loss(model: SynthSleepNet, signals: Tensor, present: Tensor, noise: Tensor) -> LossOutput:
    """``SynthSleepNet.forward`` without modality dropout."""
    config, count = model.config, present.sum(1).clamp(min=1)
    tokens = _tokens(model, signals, present)
    keep = keep_indices(noise, kept_count(model.frames, config.mask_ratio))
    fused = _fused(model, tokens, present, keep)
    errors, relative = [], []
    for place, target in enumerate(tokens):
        rows = present[:, place]
        (prediction,) = model.decode([place], [model.decoder_tokens(fused[rows, place], keep[rows, place])])
        error = masked_reconstruction(prediction, target, hidden(keep[rows, place], model.frames))
        errors.append(spread(error, rows))
        if len(error):
            relative.append(guards.relative_reconstruction(error.detach(), target.detach()))
    reconstruction = (torch.stack(errors, dim=1).sum(1) / count).mean()
    weight = present.float()[..., None]
    mean = (fused.float().mean(2) * weight).sum(1) / count[:, None]
    some = present.any(1)
    whole = spread(model.fusion_projector(mean[some]), some)
    losses, alignments = [], []
    for place, (name, part) in enumerate(zip(model.channels, tokens, strict=True)):
        rows = present[:, place]
        unimodal = spread(model.projectors[name](part.mean(1)), rows)
        losses.append(nt_xent(whole, unimodal, config.temperature, rows))
        if len(part):
            alignments.append(guards.alignment(whole[rows], unimodal[rows]))
    contrast = torch.stack(losses).sum() / present.any(0).sum().clamp(min=1)
    parts = {
        "reconstruction": reconstruction.detach(),
        "contrastive": contrast.detach(),
        "reconstruction_vs_mean": _mean_or_nan(relative),
        "alignment": _mean_or_nan(alignments),
        "uniformity": guards.uniformity(mean),
        "embedding_std": guards.embedding_std(mean),
        "effective_rank": guards.effective_rank(mean),
    }
    return LossOutput(reconstruction + config.alpha * contrast, parts)


def synthsleepnet_frames(model: SynthSleepNet, signals: Tensor, present: Tensor) -> Tensor:
    """``SynthSleepNet.encode_frames``."""
    fused = _fused(model, _tokens(model, signals, present), present, None).float()
    weight = present.float()[..., None, None]
    return (fused * weight).sum(1) / weight.sum(1).clamp(min=1)


def neuronet_frames(model: NeuroNet, signals: Tensor, present: Tensor) -> Tensor:
    """``NeuroNet.encode_frames``."""
    tokens = model.encoder(signals[present])[:, 1:].float()
    return spread(tokens, present).sum(1) / present.sum(1)[:, None, None].clamp(min=1)


def downstream_frames(model: Downstream, signals: Tensor, present: Tensor, valid: Tensor | None = None) -> Tensor:
    """``Downstream.encode_frames``, the encoder at once."""
    assert valid is not None
    encode: Callable[..., Tensor] = neuronet_frames if isinstance(model.encoder, NeuroNet) else synthsleepnet_frames
    return spread(encode(model.encoder, signals[valid], present[valid]), valid)


def _tokens(model: SynthSleepNet, signals: Tensor, present: Tensor) -> list[Tensor]:
    """Frame tokens ``[present[:, c].sum(), F, E]`` of every channel ``c``, by its encoder alone with its own adapter."""
    tokens: list[Tensor] = [signals] * present.shape[1]
    for name, places in model.backbones._groups:
        encoder = model.backbones.encoders[name]
        for number, place in enumerate(places):
            with adapters(encoder, [number]):
                tokens[place] = encoder(signals[present[:, place], place])[:, 1:]
    return tokens


def _fused(model: SynthSleepNet, tokens: list[Tensor], present: Tensor, keep: Tensor | None) -> Tensor:
    parts = [
        spread(model.adapters[name](part.flatten(0, 1)).unflatten(0, part.shape[:2]), present[:, place])
        for place, (name, part) in enumerate(zip(model.channels, tokens, strict=True))
    ]
    x = torch.stack(parts, dim=1) + model.modality_token + model.position
    if keep is not None:
        x = take(x, keep)
    shape = x.shape[1:3]
    keys = None
    if not present.all():
        attended = present | ~present.any(1, keepdim=True)
        keys = attended[..., None].expand(-1, -1, shape[1]).flatten(1)
    x = x.flatten(1, 2)
    for block in model.blocks:
        x = block(x, keys)
    return model.norm(x).unflatten(1, shape)


def _mean_or_nan(figures: list[Tensor]) -> Tensor:
    return torch.stack(figures).mean() if figures else torch.tensor(torch.nan)
