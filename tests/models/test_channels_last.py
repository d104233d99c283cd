"""Layers that take signals in either layout give what torch's own give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sleepfm.models import channels_last as layers
from sleepfm.models.frame_encoder import FrameEncoder, FrameEncoderConfig
from sleepfm.models.normalisation import RowBatchNorm

PAIRS: dict[str, tuple[nn.Module, nn.Module]] = {
    "convolution": (layers.Conv1d(4, 6, 5, 2, padding=1), nn.Conv1d(4, 6, 5, 2, padding=1)),
    "without bias": (layers.Conv1d(4, 6, 1, bias=False), nn.Conv1d(4, 6, 1, bias=False)),
    "batch norm": (layers.BatchNorm1d(4), nn.BatchNorm1d(4)),
    "rows": (RowBatchNorm(4), nn.BatchNorm1d(4)),
    "maxima": (layers.MaxPool1d(3, 2, padding=1), nn.MaxPool1d(3, 2, padding=1)),
    "means": (layers.AvgPool1d(6, stride=1), nn.AvgPool1d(6, stride=1)),
}


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def is_channels_last(x: Tensor) -> bool:
    return x.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("image", [False, True], ids=["signal", "image"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", PAIRS)
def test_a_layer_gives_what_torchs_gives(name: str, training: bool, image: bool, last: bool) -> None:
    ours, theirs = (layer.train(training) for layer in PAIRS[name])
    if image and name == "means":
        pytest.skip("takes signals alone")
    state = {key: value + 0.1 if value.is_floating_point() else value for key, value in theirs.state_dict().items()}
    found = []
    for layer in (ours, theirs):
        x = drawn(3, 20, 4).mT if last and layer is ours else drawn(3, 20, 4).mT.contiguous()
        layer.load_state_dict(state)
        layer.zero_grad()
        y = layer(x.requires_grad_().unsqueeze(2)).squeeze(2) if image and layer is ours else layer(x.requires_grad_())
        (y * drawn(*y.shape)).sum().backward()
        gradients = {key: parameter.grad for key, parameter in layer.named_parameters()}
        found.append((y.detach(), x.grad, gradients, dict(layer.named_buffers())))
        if layer is ours and image:
            assert is_channels_last(y) == last
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[N, C, 1, T\], found \[4\]"):
        layers.BatchNorm1d(4)(torch.zeros(4))


class Layouts(TorchDispatchMode):
    """Whether convolutions and norms see signals, and gradients, channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, set[bool]] = {}
        self.copies: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        # Of one channel either is right.
        if name.startswith(("convolution", "native_batch_norm")) and args[0].shape[1] > 1:
            self.seen.setdefault(name, set()).add(args[0].is_contiguous(memory_format=torch.channels_last))
        self.copies += [name] if name == "as_strided" else []
        return func(*args, **(kwargs or {}))


def test_a_step_on_a_processor_is_channels_last_from_one_end_to_the_other() -> None:
    config = FrameEncoderConfig(stem=4, channels=(4, 8), strides=(1, 2), kernels=(3, 5), pools=(3, 2), reduction=4, feature=16)
    encoder = FrameEncoder(config, 120).train()
    with Layouts() as layouts:
        encoder(drawn(3, 2, 120)).sum().backward()
    forward = ("convolution", "native_batch_norm")
    assert layouts.seen == {name: {True} for name in (*forward, *(f"{name}_backward" for name in forward))}
    # In place on a view, a step would copy what it reads and writes.
    assert not layouts.copies
