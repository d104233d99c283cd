"""Mamba-2's PyTorch path against the plain recurrence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from sleepfm.errors import ModelError
from sleepfm.models import mamba
from sleepfm.models.mamba import Mamba2, fused_scan, state_space_duality

ROOT = Path(__file__).parents[2]

LENGTHS = (1, 2, 3, 63, 64, 65, 127, 128, 200, 1000)


def inputs(length: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    x, b, c = normal(2, length, 3, 4), normal(2, length, 5), normal(2, length, 5)
    dt = torch.rand(2, length, 3, generator=generator, dtype=dtype) * 0.1
    a = -(torch.rand(3, generator=generator, dtype=dtype) * 15 + 1)
    return x, dt, a, b, c


def recurrence(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """One step after another, as the paper states it."""
    state = x.new_zeros(x.shape[0], x.shape[2], x.shape[3], b.shape[-1])
    outputs = []
    for t in range(x.shape[1]):
        decay = torch.exp(dt[:, t] * a)[..., None, None]
        state = decay * state + (dt[:, t, :, None] * x[:, t])[..., None] * b[:, t, None, None]
        outputs.append((state * c[:, t, None, None]).sum(-1))
    return torch.stack(outputs, 1)


@pytest.mark.parametrize("length", [*LENGTHS, pytest.param(4096, marks=pytest.mark.slow)])
def test_chunks_equal_the_plain_recurrence_forward_and_gradient(length: int) -> None:
    leaves = [value.requires_grad_() for value in inputs(length)]
    chunked = state_space_duality(*leaves)
    chunked_gradients = torch.autograd.grad(chunked.square().mean(), leaves)
    plain = recurrence(*leaves)
    plain_gradients = torch.autograd.grad(plain.square().mean(), leaves)
    torch.testing.assert_close(chunked, plain, atol=1e-5, rtol=1e-5)
    for mine, theirs in zip(chunked_gradients, plain_gradients, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


def test_output_does_not_look_ahead() -> None:
    torch.manual_seed(0)
    layer = Mamba2(32, d_state=8, headdim=16)
    u = torch.randn(2, 150, 32)
    changed = u.clone()
    changed[:, 100:] += 1
    with torch.no_grad():
        torch.testing.assert_close(layer(u)[:, :100], layer(changed)[:, :100])


def test_parameters_are_named_and_shaped_as_in_mamba_ssm() -> None:
    shapes = {name: tuple(value.shape) for name, value in Mamba2(512, d_state=16).state_dict().items()}
    assert shapes == {
        "in_proj.weight": (2 * 1024 + 2 * 16 + 16, 512),
        "conv1d.weight": (1024 + 32, 1, 4),
        "conv1d.bias": (1024 + 32,),
        "dt_bias": (16,),
        "A_log": (16,),
        "D": (16,),
        "norm.weight": (1024,),
        "out_proj.weight": (512, 1024),
    }


def test_initial_step_sizes_and_decays_are_in_the_published_ranges() -> None:
    layer = Mamba2(512, d_state=16)
    step = torch.nn.functional.softplus(layer.dt_bias)
    assert step.min() > 9e-4 and step.max() < 0.11
    decay = layer.A_log.exp()
    assert decay.min() >= 1 and decay.max() <= 16


def test_state_space_parameters_stay_fp32_under_bf16_autocast() -> None:
    torch.manual_seed(0)
    layer = Mamba2(32, d_state=8, headdim=16)
    u = torch.randn(2, 70, 32)
    exact = layer(u)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = layer(u)
    assert {layer.A_log.dtype, layer.D.dtype, layer.dt_bias.dtype} == {torch.float32}
    torch.testing.assert_close(mixed.float(), exact, atol=3e-2, rtol=3e-2)


def test_heads_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ModelError, match="not a multiple of headdim 48"):
        Mamba2(32, headdim=48)


def test_a_cpu_tensor_meets_no_cuda_kernel_on_a_machine_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise AssertionError("the fused scan was asked for")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(mamba, "fused_scan", refuse)
    assert Mamba2(32, d_state=8, headdim=16)(torch.randn(1, 5, 32)).isfinite().all()


def test_a_package_that_cannot_be_imported_is_one_warning(tmp_path: Path) -> None:
    package = tmp_path / "mamba_ssm"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('selective_scan_cuda: undefined symbol')")
    code = "from sleepfm.models.mamba import fused_scan; print(fused_scan(), fused_scan())"
    variables = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=variables)
    assert done.stdout == "None None\n"
    assert done.stderr.count("cannot be imported (selective_scan_cuda: undefined symbol)") == 1


def scan_kernel(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    return_final_states: bool = False,
    return_varlen_states: bool = False,
) -> Tensor:
    """``mamba_ssm.ops.triton.ssd_combined.mamba_chunk_scan_combined`` by its signature: ``x`` ``[B, L, H, P]``, ``dt``
    ``[B, L, H]``, ``A`` ``[H]``, ``B`` and ``C`` ``[B, L, 1, N]``.
    """
    assert dt.shape == x.shape[:3] and A.shape == x.shape[2:3] and B.shape == C.shape == (*x.shape[:2], 1, B.shape[3])
    assert {tensor.dtype for tensor in (x, dt, A, B, C)} == {torch.float32} and chunk_size == 256
    assert D is None and z is None and dt_bias is None and not dt_softplus
    return recurrence(x, dt, A, B[:, :, 0], C[:, :, 0])


@pytest.mark.parametrize("autocast", [False, True])
def test_fused_and_plain_paths_share_their_parameters(monkeypatch: pytest.MonkeyPatch, autocast: bool) -> None:
    torch.manual_seed(0)
    plain, fused = (Mamba2(32, d_state=8, headdim=16) for _ in range(2))
    fused.load_state_dict(plain.state_dict())
    u = torch.randn(2, 70, 32)
    calls = []

    def kernel(*arguments: Any, **options: Any) -> Tensor:
        calls.append(1)
        return scan_kernel(*arguments, **options)

    def run(layer: Mamba2) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = layer(u)
        out.float().square().sum().backward()
        return out.detach()

    expected = run(plain)
    names = ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.triton", "mamba_ssm.ops.triton.ssd_combined")
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys.modules[names[-1]], "mamba_chunk_scan_combined", kernel, raising=False)
    # A tensor that says it is on a GPU; there is none here.
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    fused_scan.cache_clear()
    try:
        found = run(fused)
    finally:
        monkeypatch.undo()
        fused_scan.cache_clear()
    assert calls
    bound = 2e-2 if autocast else 1e-3
    torch.testing.assert_close(found, expected, atol=bound / 10, rtol=bound)
    for (name, one), (_, other) in zip(plain.named_parameters(), fused.named_parameters(), strict=True):
        assert one.grad is not None and other.grad is not None, name
        torch.testing.assert_close(
            other.grad, one.grad, atol=2e-2 if autocast else 1e-3, rtol=2e-2 if autocast else 1e-3, msg=name
        )


@pytest.mark.gpu
def test_the_fused_scan_equals_the_pytorch_path() -> None:
    pytest.importorskip("mamba_ssm")
    torch.manual_seed(0)
    layer = Mamba2(128, d_state=16, headdim=64)
    u = torch.randn(2, 300, 128)
    here = layer(u)
    there = layer.cuda()(u.cuda())
    torch.testing.assert_close(there.cpu(), here, atol=1e-3, rtol=1e-3)
