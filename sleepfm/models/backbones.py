"""Frozen unimodal encoders under a multimodal model, adapted to each channel by LoRA; a level (SpO2) has no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from sleepfm.config import Config
from sleepfm.constants import CHANNEL_MODALITY
from sleepfm.errors import ModelError
from sleepfm.models.folding import Folded
from sleepfm.models.lora import LoRALinear, adapters, add_lora
from sleepfm.models.neuronet import NeuroNetEncoder
from sleepfm.models.saturation import LEVELS, SaturationEncoder
from sleepfm.models.side_by_side import side_by_side

Layout = Literal["shared", "copies"]


class LoRAConfig(Config):
    """Low-rank updates of the attention's output projections, scaled by ``alpha / sqrt(rank)``."""

    rank: int = Field(default=4, ge=1)
    alpha: float = 16.0
    dropout: float = Field(default=0.05, ge=0, lt=1)
    targets: tuple[str, ...] = (r".*attn\.proj",)


class Backbones(nn.Module):
    """One frozen encoder per modality (``shared``) or per channel (``copies``, the paper's layout), LoRA per
    channel.

    Args:
        channels: canonical names, in the order of the signals.
        encoders: pretrained encoder per modality. Taken over as they are: bit-identical, frozen and in eval
            mode for good; with ``copies`` every channel gets a copy.
        lora: low-rank updates, zero at construction.
        layout: see above.

    Raises:
        ModelError: encoders of different width or number of frames.
    """

    def __init__(
        self,
        channels: Sequence[str],
        encoders: Mapping[str, NeuroNetEncoder],
        lora: LoRAConfig,
        layout: Layout,
    ) -> None:
        super().__init__()
        shapes = {name: (encoder.frames, encoder.dim) for name, encoder in encoders.items()}
        if len(set(shapes.values())) != 1:
            found = ", ".join(f"{name} {frames} x {dim}" for name, (frames, dim) in shapes.items())
            raise ModelError(f"encoders of all modalities need the same frames x width, found {found}")
        self.frames, self.dim = next(iter(shapes.values()))
        self._groups: list[tuple[str, tuple[int, ...]]] = []
        self.encoders = nn.ModuleDict()
        self._levels = [place for place, name in enumerate(channels) if name in LEVELS]
        if self._levels:
            times = next(iter(encoders.values())).config.frame_times
            self.saturation = SaturationEncoder(times, self.dim)
        for name, places in _groups(channels, layout):
            encoder = encoders[CHANNEL_MODALITY[channels[places[0]]]]
            if layout == "copies":
                encoder = _copy(encoder)
            encoder.requires_grad_(False)
            add_lora(encoder, lora.targets, len(places), lora.rank, lora.alpha, lora.dropout)
            self.encoders[name] = encoder
            self._groups.append((name, places))
        self._folded = {name: Folded(encoder) for name, encoder in self.encoders.items()}
        self.train(self.training)

    def train(self, mode: bool = True) -> Backbones:
        """Only the dropout of the low-rank updates follows ``mode``; batch statistics stay those of
        pretraining.
        """
        super().train(mode)
        self.encoders.eval()
        for layer in self.encoders.modules():
            if isinstance(layer, LoRALinear) and layer.lora_a.requires_grad:
                layer.dropout.train(mode)
        return self

    def forward(self, signals: Tensor, present: Tensor, places: Sequence[int]) -> list[Tensor]:
        """Frame tokens ``[B, F, E]`` of every channel from ``[B, C, T]`` and ``[B, C]``, the channels at ``places`` among those
        of the model. Tokens of absent channels are finite and mean nothing.

        The channels of a group run stacked in one batch, and transformers that are alike side by side where they are compiled.
        """
        signals = signals.masked_fill(~present[..., None], 0)
        tokens: list[Tensor] = [signals] * len(places)
        for column, place in enumerate(places):
            if place in self._levels:
                tokens[column] = self.saturation(signals[:, column])
        # Of groups whose transformers are alike: encoder, columns of the channels in ``signals``, tokens of their frames.
        alike: dict[str, list[tuple[NeuroNetEncoder, list[int], Tensor]]] = {}
        with ExitStack() as chosen:
            for name, members in self._groups:
                columns = [column for column, place in enumerate(places) if place in members]
                if not columns:
                    continue
                encoder = cast(NeuroNetEncoder, self._folded[name]())
                index = [members.index(places[column]) for column in columns]
                chosen.enter_context(adapters(encoder, index))
                x = encoder.tokens(torch.cat([signals[:, column] for column in columns]))
                whole = index == list(range(len(members)))
                structure = f"{encoder.config.encoder}, {len(members)} adapters" if whole else name
                alike.setdefault(structure, []).append((encoder, columns, x))
            for groups in alike.values():
                encoders, _, inputs = zip(*groups, strict=True)
                mixed = side_by_side([e.blocks for e in encoders], [e.norm for e in encoders], inputs)
                for (_, columns, _), out in zip(groups, mixed, strict=True):
                    parts = out[:, 1:].unflatten(0, (len(columns), signals.shape[0])).unbind(0)
                    for column, part in zip(columns, parts, strict=True):
                        tokens[column] = part
        return tokens


def _groups(channels: Sequence[str], layout: Layout) -> list[tuple[str, tuple[int, ...]]]:
    """The encoders that the ``channels`` need, by name, and the places of the channels that go through each."""
    waves = [(place, name) for place, name in enumerate(channels) if name not in LEVELS]
    if layout == "copies":
        return [(name, (place,)) for place, name in waves]
    modalities = dict.fromkeys(CHANNEL_MODALITY[name] for _, name in waves)
    return [(modality, tuple(place for place, name in waves if CHANNEL_MODALITY[name] == modality)) for modality in modalities]


def _copy(encoder: NeuroNetEncoder) -> NeuroNetEncoder:
    twin = NeuroNetEncoder(encoder.config)
    twin.load_state_dict(encoder.state_dict())
    return twin
