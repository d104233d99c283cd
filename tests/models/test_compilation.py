"""Models are compiled without a graph break, a unit at a time, to the same numbers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sleepfm.models import guards, recompute
from sleepfm.models.build import build_model
from sleepfm.models.context import ContextConfig, build_context
from sleepfm.models.downstream import Downstream, DownstreamConfig, TuneConfig
from sleepfm.models.event_head import EventHeadConfig
from sleepfm.models.frame_encoder import FrameEncoder, FrameEncoderConfig, ResidualBlock
from sleepfm.models.masked_context import MaskedContext, MaskedContextConfig
from sleepfm.training.ranks.precision import RoundedProducts

FRAME_ENCODER = {"stem": 4, "channels": [4, 8], "strides": [2, 2], "pools": [3, 2, 1], "reduction": 4, "feature": 16}
SMALL: dict[str, Any] = {
    "kind": "neuronet",
    "channels": ["EEG_C3", "EEG_C4"],
    "window_s": 4.0,
    "step_s": 4.0,
    "frame_encoder": FRAME_ENCODER,
    "encoder": {"dim": 16, "depth": 1, "heads": 2},
    "decoder": {"dim": 8, "depth": 1, "heads": 2},
    "projector": [16, 8],
}
MULTIMODAL: dict[str, Any] = {
    "kind": "synthsleepnet",
    # Two channels of one modality share a backbone.
    "channels": ["EEG_C3", "EEG_C4", "ECG"],
    "backbone": SMALL,
    "encoder": {"dim": 16, "depth": 1, "heads": 2},
    "decoder": {"dim": 8, "depth": 1, "heads": 2},
    "projector": [16, 8],
    "modality_dropout": 0.2,
}
MAMBA = ContextConfig(headdim=16, d_state=4, bidirectional=True)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    recompute._compiled.cache_clear()
    yield
    torch._dynamo.reset()
    recompute._compiled.cache_clear()


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def presence(*shape: int) -> Tensor:
    """Where something is there, and something is not."""
    there = torch.rand(*shape, generator=torch.Generator().manual_seed(2)) < 0.7
    assert there.any() and not there.all()
    return there


def built(config: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    return build_model(config).train()


class Probed(nn.Module):
    """Context and head of a downstream model, on embeddings."""

    def __init__(self, model: Downstream) -> None:
        super().__init__()
        self.model = model

    def forward(self, embedding: Tensor, valid: Tensor) -> Tensor:
        return self.model.classify(embedding, valid)


def neuronet() -> tuple[nn.Module, tuple[Tensor, ...]]:
    model = built(SMALL)
    return model, (drawn(4, 3000), torch.rand(4, *model.noise_shape))


def synthsleepnet() -> tuple[nn.Module, tuple[Tensor, ...]]:
    model = built(MULTIMODAL)
    return model, (drawn(4, 3, 3000), presence(4, 3), torch.rand(4, *model.noise_shape))


def masked_context() -> tuple[nn.Module, tuple[Tensor, ...]]:
    model = MaskedContext(MaskedContextConfig(length=70, span=5, context=MAMBA), built(SMALL)).train()
    return model, (drawn(2, 70, 16), presence(2, 70), torch.rand(2, *model.noise_shape))


def downstream(encoder: dict[str, Any], **options: Any) -> Downstream:
    config = DownstreamConfig(task="stage", classes=("a", "b", "c"), encoder=encoder, context=MAMBA, **options)
    return Downstream(config, built(encoder)).train()


def probe() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return Probed(downstream(SMALL)), (drawn(2, 6, 16), presence(2, 6))


def finetune() -> tuple[nn.Module, tuple[Tensor, ...]]:
    events = EventHeadConfig(hidden=8, context=ContextConfig(headdim=16, d_state=4))
    model = downstream(SMALL, tune=TuneConfig(mode="lora"), events=events)
    return model, (drawn(2, 3, 2, 3000), presence(2, 3, 2))


def multimodal_finetune() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return downstream(MULTIMODAL, tune=TuneConfig(mode="lora")), (drawn(2, 3, 3, 3000), presence(2, 3, 3))


CASES = [neuronet, synthsleepnet, masked_context, probe, finetune, multimodal_finetune]
LONG = {synthsleepnet, probe, finetune, multimodal_finetune}


@pytest.mark.parametrize("case", [pytest.param(c, marks=pytest.mark.slow if c in LONG else (), id=c.__name__) for c in CASES])
def test_a_model_is_one_graph(case: Any) -> None:
    model, inputs = case()
    with guards.only_if(False):
        found = torch._dynamo.explain(model)(*inputs)
    reasons = [f"{reason.reason} at {reason.user_stack[-1:]}" for reason in found.break_reasons]
    assert not reasons
    assert (found.graph_count, found.graph_break_count) == (1, 0)


def with_backend(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    """Compile through tracing and differentiation, but not to machine code, unless ``backend`` is inductor's."""
    if backend != "inductor":
        plain = torch.compile
        monkeypatch.setattr(torch, "compile", lambda function, **options: plain(function, backend=backend, dynamic=False))


def step(module: nn.Module, loss: Any, bf16: bool = False) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    torch.manual_seed(3)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16), RoundedProducts(), guards.only_if(False):
        value = loss(module)
        value.backward()
    gradients = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    return value.detach(), gradients, {name: b.clone() for name, b in module.named_buffers()}


def assert_same_step(plain: nn.Module, compiled: nn.Module, loss: Any) -> None:
    value, gradients, buffers = step(plain, loss)
    other, other_gradients, other_buffers = step(compiled, loss)
    torch.testing.assert_close(other, value, rtol=1e-5, atol=1e-6)
    assert gradients.keys() == other_gradients.keys() != set()
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            other_gradients[name], gradient, rtol=1e-3, atol=2e-6 * largest, msg=lambda m, n=name: f"{n}: {m}"
        )
    for name, buffer in buffers.items():
        torch.testing.assert_close(other_buffers[name], buffer, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def encoder_loss(module: Any) -> Tensor:
    # With an offset, against which a variance from sums of squares would lose its digits.
    frames = drawn(3, 2, 120) * 3 + 40
    return (module(frames) * drawn(3, 2, 16, seed=4)).sum()


def encoder(squeeze: bool = True, strides: tuple[int, ...] = (1, 2)) -> nn.Module:
    torch.manual_seed(0)
    config = FrameEncoderConfig(
        stem=4, channels=(4, 8), strides=strides, kernels=(5,), pools=(2,), squeeze=squeeze, reduction=4, feature=16
    )
    return FrameEncoder(config, 120).train()


@pytest.mark.parametrize(
    ("squeeze", "forget"),
    [
        pytest.param(True, True, id="recomputed"),
        pytest.param(True, False, id="kept", marks=pytest.mark.slow),
        pytest.param(False, False, id="without squeeze", marks=pytest.mark.slow),
    ],
)
def test_a_compiled_frame_encoder_gives_the_same_step(monkeypatch: pytest.MonkeyPatch, squeeze: bool, forget: bool) -> None:
    with_backend(monkeypatch, "aot_eager")
    plain = encoder(squeeze)
    compiled = copy.deepcopy(plain)
    assert recompute.compile_units(compiled) == 3
    if forget:
        assert recompute.recompute_activations(compiled) == 3
    assert_same_step(plain, compiled, encoder_loss)
    assert list(compiled.state_dict()) == list(plain.state_dict())


@pytest.mark.slow
def test_fused_norms_stand_in_every_compiled_block(monkeypatch: pytest.MonkeyPatch) -> None:
    with_backend(monkeypatch, "aot_eager")
    seen: list[int] = []
    fused = ResidualBlock._fused
    monkeypatch.setattr(ResidualBlock, "_fused", lambda self, x: seen.append(1) or fused(self, x))
    module = encoder()
    step(module, encoder_loss)
    assert not seen
    recompute.compile_units(module)
    step(module, encoder_loss)
    assert len(seen) == 2


@pytest.mark.slow
def test_compiled_blocks_are_nearer_to_fp32_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    with_backend(monkeypatch, "aot_eager")
    plain = encoder()
    compiled, exact = copy.deepcopy(plain), copy.deepcopy(plain)
    recompute.compile_units(compiled)
    truth = step(exact, encoder_loss)[1]

    def distance(module: nn.Module) -> float:
        found = step(module, encoder_loss, bf16=True)[1]
        return sum(float((found[name] - value).square().sum()) for name, value in truth.items()) ** 0.5

    assert distance(compiled) < 1.2 * distance(plain)


def test_what_runs_without_gradients_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    with_backend(monkeypatch, "aot_eager")
    module = encoder()
    before = copy.deepcopy(module)
    recompute.compile_units(module)
    with torch.no_grad():
        assert torch.equal(module(drawn(3, 2, 120)), before(drawn(3, 2, 120)))
    assert recompute._compiled.cache_info().currsize == 0


@pytest.mark.slow
def test_more_shapes_than_torch_keeps_by_itself_are_all_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    with_backend(monkeypatch, "eager")
    torch.manual_seed(0)
    channels = range(1, 13)
    blocks = nn.Sequential(*(ResidualBlock(size, size + 1, 3, 1, False, 4) for size in channels)).train()
    recompute.compile_units(blocks)
    torch._dynamo.utils.counters.clear()
    blocks(drawn(2, 1, 20)).sum().backward()
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == len(channels)
    assert not counters["graph_break"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_machine_code_gives_the_same_step(bf16: bool) -> None:
    plain = nn.Sequential(ResidualBlock(4, 8, 5, 2, True, 4)).train()
    compiled = copy.deepcopy(plain)
    recompute.compile_units(compiled)

    def loss(module: Any) -> Tensor:
        return (module(drawn(6, 4, 40)) * drawn(6, 8, 17, seed=4)).sum()

    if not bf16:
        assert_same_step(plain, compiled, loss)
        return
    value, gradients, _ = step(plain, loss, bf16)
    other, others, _ = step(compiled, loss, bf16)
    torch.testing.assert_close(other, value, rtol=0.05, atol=0.05)
    for name, gradient in gradients.items():
        assert float((others[name] - gradient).norm()) <= 0.05 * float(gradient.norm()) + 1e-3, name


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_machine_code_of_transformer_and_mamba_gives_the_same_step() -> None:
    from sleepfm.models.transformer import Block

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block(16, 2)
            self.context = build_context(MAMBA, 16)

        def forward(self, x: Tensor) -> Tensor:
            return self.context(self.block(x))

    torch.manual_seed(0)
    plain = Both().train()
    compiled = copy.deepcopy(plain)
    assert recompute.compile_units(compiled) == 2
    assert_same_step(plain, compiled, lambda module: (module(drawn(2, 70, 16)) * drawn(2, 70, 16, seed=4)).sum())
