"""Frozen encoders as they compute: batch norms folded into convolutions, weights held in the type of the products.

A batch norm in eval mode is an affine map of every channel, which the convolution before it can do for nothing. And weights that
never change need not be cast to bf16 in every step. So a frozen encoder computes through a twin of itself, made when it is first
needed and again when something in it has changed. The encoder stays as it was loaded, in fp32 and to the bit: it alone is part of
the model, of its state dict and of what is saved.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from sleepfm.models.frame_encoder import ResidualBlock
from sleepfm.models.recompute import UNIT_SETTINGS, is_unit


class Folded:
    """Gives the twin of ``encoder`` for the precision around the call. It shares with the encoder all that trains (low-rank
    updates) and all that stays the same.
    """

    def __init__(self, encoder: nn.Module) -> None:
        self._encoder = encoder
        self._twin: nn.Module = encoder
        self._source: _Source | None = None
        self._dtype: torch.dtype | None = None

    def __call__(self) -> nn.Module:
        """The twin; the encoder itself where a part of it that would be folded is being trained, or while a compiler traces."""
        if torch.compiler.is_compiling():
            return self._encoder
        dtype = _product_type(next(self._encoder.parameters()).device.type)
        if self._source is None or dtype != self._dtype or not self._source.is_as_it_was():
            # Made while a night is scored, it must still serve a training step.
            with torch.inference_mode(False), torch.no_grad():
                self._twin = _twin(self._encoder, dtype) if _is_frozen(self._encoder) else self._encoder
            self._source, self._dtype = _Source(self._encoder), dtype
        return self._twin


class _Source:
    """What a twin of ``encoder`` was made of. Asked in every step, hence by looking at known places only."""

    def __init__(self, encoder: nn.Module) -> None:
        self._places: list[tuple[dict[str, Any], str]] = []
        self._tensors: list[Tensor] = []
        for part in encoder.modules():
            for names in (part._modules, part._parameters, part._buffers):
                self._places += [(names, name) for name in names]
            self._tensors += [tensor for tensor in (*part._parameters.values(), *part._buffers.values()) if tensor is not None]
            # A part of the twin has the mode that its own had when it was made: dropout, too, goes by it.
            self._places.append((vars(part), "training"))
            if is_unit(part):
                self._places += [(vars(part), name) for name in UNIT_SETTINGS]
        # Kept, so that nothing else can get their identities.
        self._values = [names.get(name) for names, name in self._places]
        self._identities = [id(value) for value in self._values]
        self._frozen = [tensor for tensor in self._tensors if not tensor.requires_grad]
        self._versions = [tensor._version for tensor in self._frozen]
        self._lies = self._place()

    def _place(self) -> tuple[int, torch.device, torch.dtype]:
        return sum([tensor.requires_grad for tensor in self._tensors]), self._tensors[0].device, self._tensors[0].dtype

    def is_as_it_was(self) -> bool:
        """Whether no part was replaced or changed its mode, and no tensor that does not train was written to or moved."""
        return (
            [tensor._version for tensor in self._frozen] == self._versions
            and [id(names.get(name)) for names, name in self._places] == self._identities
            and self._place() == self._lies
        )


def _product_type(device: str) -> torch.dtype | None:
    """Type in which autocast forms products here; None without autocast."""
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def _is_frozen(module: nn.Module) -> bool:
    """Whether no convolution, linear layer or batch norm of ``module`` trains."""
    kinds = (nn.Conv1d, nn.Linear, nn.BatchNorm1d)
    parts = [part for part in module.modules() if isinstance(part, kinds)]
    return not any(parameter.requires_grad for part in parts for parameter in part.parameters(recurse=False)) and not any(
        part.training for part in parts if isinstance(part, nn.BatchNorm1d)
    )


def _twin(module: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """``module`` with its batch norms folded and the weights of its products in ``dtype``; what stays the same is shared."""
    twin = _shallow(module)
    for name, child in module.named_children():
        twin._modules[name] = _twin(child, dtype)
    for convolution, norm in _pairs(module):
        fused = _shallow(module.get_submodule(convolution))
        weight, bias = _fused(module.get_submodule(convolution), module.get_submodule(norm))
        fused._parameters |= {"weight": _held(weight, dtype), "bias": _held(bias, dtype)}
        twin._modules |= {convolution: fused, norm: nn.Identity()}
    if isinstance(module, nn.Linear) and dtype is not None:
        twin._parameters = {
            name: None if parameter is None else _held(parameter, dtype) for name, parameter in module._parameters.items()
        }
    return twin


def _shallow(module: nn.Module) -> nn.Module:
    """Another module of the same class with the same tensors and parts, which can be given others."""
    twin = module.__new__(type(module))
    twin.__dict__ = dict(vars(module))
    for name in ("_parameters", "_buffers", "_modules"):
        twin.__dict__[name] = dict(vars(module)[name])
    return twin


def _held(tensor: Tensor, dtype: torch.dtype | None) -> nn.Parameter:
    return nn.Parameter(tensor.detach() if dtype is None else tensor.detach().to(dtype), requires_grad=False)


def _pairs(module: nn.Module) -> list[tuple[str, str]]:
    """Names of the convolutions among the children of ``module``, each with the batch norm that comes after it."""
    if isinstance(module, ResidualBlock):
        return [("conv1", "bn1"), ("conv2", "bn2")]
    if isinstance(module, nn.Sequential):
        return [
            (first, second)
            for (first, a), (second, b) in pairwise(module.named_children())
            if isinstance(a, nn.Conv1d) and isinstance(b, nn.BatchNorm1d)
        ]
    return []


def _fused(convolution: nn.Module, norm: nn.Module) -> tuple[Tensor, Tensor]:
    assert isinstance(convolution, nn.Conv1d) and isinstance(norm, nn.BatchNorm1d)
    assert norm.running_mean is not None and norm.running_var is not None
    return fuse_conv_bn_weights(
        convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
