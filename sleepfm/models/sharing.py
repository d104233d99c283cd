"""One copy in memory of an encoder that several models have in common, as heads do that were trained on one frozen encoder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import nn

from sleepfm.models.build import model_config
from sleepfm.models.downstream import Downstream


def same_encoder(one: Downstream, other: Downstream) -> bool:
    """Whether both compute the same embeddings, to the bit."""
    if one.encoder is other.encoder:
        return True
    # Low-rank updates of a downstream job are no part of an encoder's configuration, but have names of their own in its state.
    if model_config(one.encoder) != model_config(other.encoder):
        return False
    mine, theirs = one.encoder.state_dict(), other.encoder.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def share_encoder(model: Downstream, others: Sequence[Downstream]) -> None:
    """Have ``model`` use the encoder of the first of ``others`` that has the same, and let go of its own, and of the file that
    this is mapped from.

    What trains in it would then train for all of them: a model that adapts its encoder keeps it.
    """
    if model.config.tune.mode != "frozen":
        return
    for other in others:
        if same_encoder(model, other):
            model.encoder = other.encoder
            _copy_the_rest(model)
            return


def _copy_the_rest(model: Downstream) -> None:
    """Give what is not the encoder's memory of its own: a few weights would keep the whole mapped file, every page of which was
    read to compare the encoders.
    """
    rest = {name: tensor.clone() for name, tensor in model.state_dict().items() if not name.startswith("encoder.")}
    model.load_state_dict(rest, strict=False, assign=True)


def state_digest(module: nn.Module, parts: dict[int, str] | None = None) -> str:
    """SHA-256 of the configuration and every tensor of ``module``.

    ``parts`` keeps the digests of encoders by identity, so that one that several models share is read once.
    """
    parts = {} if parts is None else parts
    # The number of heads, say, is in no weight.
    digest = hashlib.sha256(repr(model_config(module)).encode())
    encoder = module.encoder if isinstance(module, Downstream) else None
    if encoder is not None:
        if id(encoder) not in parts:
            parts[id(encoder)] = state_digest(encoder)
        digest.update(parts[id(encoder)].encode())
    for name, tensor in module.state_dict().items():
        if encoder is not None and name.startswith("encoder."):
            continue
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
