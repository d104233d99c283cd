"""Products of bf16 operands on processors without bf16 instructions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional

from sleepfm.training.ranks.precision import RoundedProducts

Operation = Callable[..., torch.Tensor]
OPERATIONS: dict[str, tuple[Operation, tuple[tuple[int, ...], ...]]] = {
    "linear": (functional.linear, ((7, 33), (12, 33), (12,))),
    "conv1d": (functional.conv1d, ((3, 8, 40), (6, 8, 5))),
    "conv2d": (functional.conv2d, ((3, 8, 1, 40), (6, 8, 1, 5))),
    "attention": (functional.scaled_dot_product_attention, ((2, 4, 11, 8), (2, 4, 11, 8), (2, 4, 11, 8))),
    "matmul": (lambda a, b: a @ b, ((2, 9, 17), (2, 17, 5))),
    "einsum": (lambda a, b: torch.einsum("nsi,nri->nsr", a, b), ((2, 9, 17), (2, 5, 17))),
}


def operands(shapes: tuple[tuple[int, ...], ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]


def run(operation: Operation, shapes: tuple[tuple[int, ...], ...], rounded: bool) -> list[torch.Tensor]:
    """The result and the gradients of its square under autocast."""
    inputs = operands(shapes)
    with torch.autocast("cpu", torch.bfloat16):
        if rounded:
            with RoundedProducts():
                out = operation(*inputs)
        else:
            out = operation(*inputs)
    out.float().square().sum().backward()
    return [out, *(value.grad for value in inputs if value.grad is not None)]


@pytest.mark.parametrize("name", list(OPERATIONS))
def test_a_rounded_product_is_the_product_of_the_bf16_kernels(name: str) -> None:
    operation, shapes = OPERATIONS[name]
    for ours, native in zip(run(operation, shapes, True), run(operation, shapes, False), strict=True):
        assert ours.dtype == native.dtype
        # Sums in another order may fall on the neighbouring bf16 number, one part in 128 of it at most.
        scale = native.abs().max().item()
        assert (ours.float() - native.float()).abs().max().item() <= scale / 64


def test_a_rounded_product_is_the_exact_product_of_bf16_numbers() -> None:
    weight, x = operands(((12, 33), (7, 33)))
    with torch.autocast("cpu", torch.bfloat16), RoundedProducts():
        out = functional.linear(x, weight)
    exact = x.bfloat16().double() @ weight.bfloat16().double().T
    assert out.dtype == torch.bfloat16
    assert ((out.double() - exact).abs() <= exact.abs() / 128 + 1e-6).all()
    assert not torch.equal(out.double(), (x.double() @ weight.double().T).bfloat16().double())


def test_nothing_changes_outside_of_autocast() -> None:
    weight, x = operands(((12, 33), (7, 33)))
    with RoundedProducts():
        inside = functional.linear(x, weight)
    assert torch.equal(inside, functional.linear(x, weight))
    with torch.autocast("cpu", torch.bfloat16), RoundedProducts(), torch.autocast("cpu", enabled=False):
        assert torch.equal(functional.linear(x, weight), inside)
