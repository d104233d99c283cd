"""Presence as weights gives what selecting the rows that exist gives: losses, figures, gradients and running statistics."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import row_selection
import torch
import torch.distributed as dist
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ranks import spawn_ranks
from torch import Tensor, nn

from sleepfm.config import read_yaml
from sleepfm.errors import ModelError
from sleepfm.models import context, heads, neuronet
from sleepfm.models.build import build_model, model_config
from sleepfm.models.context import ContextConfig, build_context
from sleepfm.models.downstream import Downstream, DownstreamConfig, TuneConfig
from sleepfm.models.inputs import held_channels
from sleepfm.models.losses import LossOutput
from sleepfm.models.masked_context import MaskedContext, MaskedContextConfig
from sleepfm.models.normalisation import RowBatchNorm, mlp, on_valid
from sleepfm.models.recompute import recompute_activations
from sleepfm.models.synthsleepnet import SynthSleepNet
from sleepfm.training.ranks.batch_norm import synchronise

CONFIGS = Path(__file__).parents[2] / "configs" / "models"
# Two channels share a backbone, so that their adapters are told apart.
CHANNELS = ("EEG_C3", "EEG_C4", "EMG_CHIN", "ECG")
ROWS = 4


@contextmanager
def in_fp64() -> Iterator[None]:
    """What the models compute in fp32 whatever their type stays in fp64 where it is: rounding then hides nothing."""
    narrow = Tensor.float
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "float", lambda x: x if x.dtype == torch.float64 else narrow(x))
        yield


def prepared(module: nn.Module) -> nn.Module:
    """Low-rank updates that differ, statistics as of a run that is under way, and no dropout, whose draws depend on the rows."""
    for name, parameter in module.named_parameters():
        if name.endswith("lora_b"):
            nn.init.normal_(parameter, std=0.1)
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        elif isinstance(part, nn.BatchNorm1d):
            nn.init.uniform_(part.running_mean, -0.1, 0.1)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
    return module


def encoder(name: str = "synthsleepnet", channels: tuple[str, ...] = CHANNELS) -> Any:
    torch.manual_seed(0)
    values = read_yaml(CONFIGS / f"{name}-tiny.yaml")["model"] | {"channels": list(channels)}
    small = {"encoder": {"dim": 16, "depth": 1, "heads": 2}, "decoder": {"dim": 16, "depth": 1, "heads": 2}, "projector": [16, 8]}
    frames = {"stem": 2, "channels": [4, 4], "reduction": 2, "feature": 16}
    if name == "neuronet":
        return prepared(build_model(values | small | {"frame_encoder": values["frame_encoder"] | frames}))
    backbone = values["backbone"] | small | {"frame_encoder": values["backbone"]["frame_encoder"] | frames}
    return prepared(build_model(values | small | {"backbone": backbone, "modality_dropout": 0.0}))


def assert_same(dense: nn.Module, rows: nn.Module, tolerance: float = 1e-8) -> None:
    """Gradients, of which none at all is as good as zeros, and buffers."""
    for (name, one), (_, other) in zip(dense.named_parameters(), rows.named_parameters(), strict=True):
        found, wanted = (torch.zeros_like(p) if p.grad is None else p.grad for p in (one, other))
        scale = wanted.abs().max().clamp(min=1)
        assert ((found - wanted).abs() / scale).max() <= tolerance, name
    for (name, one), (_, other) in zip(dense.named_buffers(), rows.named_buffers(), strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance, msg=lambda text, name=name: f"{name}: {text}")


def everywhere(row: list[int]) -> list[list[int]]:
    return [row] * ROWS


patterns = st.lists(st.lists(st.integers(0, 1), min_size=4, max_size=4), min_size=ROWS, max_size=ROWS)


@given(patterns)
@example(everywhere([1, 1, 1, 1]))
@example(everywhere([1, 0, 1, 1]))  # a channel that nobody has, beside one of the same backbone
@example(everywhere([0, 0, 0, 1]))
@example([[1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 1], [1, 0, 1, 0]])  # an epoch without any channel
@example([[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]])  # channels with one row
@example([[0, 1, 0, 0], *[[0, 0, 0, 0]] * 3])  # one row altogether
@example(everywhere([0, 0, 0, 0]))
@settings(max_examples=12, deadline=None, derandomize=True)
def test_a_synthsleepnet_trains_as_on_the_rows_that_exist(pattern: list[list[int]]) -> None:
    assert_trained_alike(torch.tensor(pattern).bool())


def test_a_batch_of_one_epoch_trains_as_on_the_rows_that_exist() -> None:
    assert_trained_alike(torch.tensor([[True, False, True, True]]))


def assert_trained_alike(present: Tensor) -> None:
    """A step with ``present`` ``[B, C]``."""
    dense = encoder().double().train()
    rows = copy.deepcopy(dense)
    generator = torch.Generator().manual_seed(1)
    signals = torch.randn(*present.shape, 3000, generator=generator, dtype=torch.float64)
    noise = torch.rand(*present.shape, 27, generator=generator)
    with in_fp64():
        # What stands in absent rows is nobody's business.
        found = dense(torch.where(present[..., None], signals, torch.nan), present, noise)
        wanted = row_selection.synthsleepnet_loss(rows, signals, present, noise)
        found.loss.backward()
        if present.any():
            wanted.loss.backward()
    torch.testing.assert_close(found.loss, wanted.loss, atol=1e-9, rtol=1e-9)
    assert found.parts.keys() == wanted.parts.keys()
    for name, value in wanted.parts.items():
        torch.testing.assert_close(found.parts[name], value, atol=1e-6, rtol=1e-6, equal_nan=True, check_dtype=False)
    assert_same(dense, rows)


# Of two ranks with two epochs each: the first has no ECG, and an epoch without any channel.
SHARED = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 1, 1], [0, 1, 1, 1]]).bool()


def shared_step(model: nn.Module, part: slice) -> LossOutput:
    generator = torch.Generator().manual_seed(1)
    signals = torch.randn(4, 4, 3000, generator=generator, dtype=torch.float64)
    noise = torch.rand(4, 4, 27, generator=generator)
    with in_fp64():
        output = model(signals[part], SHARED[part], noise[part])
        output.loss.backward()
    return output


def rank_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model = encoder().double().train()
    synchronise(model)
    output = shared_step(model, slice(2 * rank, 2 * rank + 2))
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    torch.save((output.loss.detach(), gradients, dict(model.named_buffers())), f"{folder}/{rank}.pt")


@pytest.mark.slow
def test_two_ranks_that_hold_other_channels_are_one_process(tmp_path: Path) -> None:
    spawn_ranks(rank_of_two, (str(tmp_path),), 2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    model = encoder().double().train()
    whole = shared_step(model, slice(None)).loss
    torch.testing.assert_close((ranks[0][0] + ranks[1][0]) / 2, whole.detach(), atol=1e-9, rtol=1e-9)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            mean = sum(rank[1].get(name, torch.zeros(())) for rank in ranks) / 2
            torch.testing.assert_close(mean, parameter.grad, atol=1e-8, rtol=1e-6, msg=name)
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(ranks[0][2][name], buffer, atol=1e-9, rtol=1e-9, msg=name)
        assert torch.equal(ranks[0][2][name], ranks[1][2][name]), name


@pytest.mark.parametrize("channels", [CHANNELS, ("ECG",), ("ECG", "EEG_C4"), ("EEG_C3",)])
def test_an_encoder_that_is_given_some_channels_embeds_as_on_the_rows_that_exist(channels: tuple[str, ...]) -> None:
    model = encoder().eval()
    places = [CHANNELS.index(name) for name in channels]
    held = torch.zeros(ROWS, 4, dtype=torch.bool)
    held[:, places] = torch.rand(ROWS, len(places), generator=torch.Generator().manual_seed(3)) < 0.7
    held[0, places[0]] = True
    signals = torch.randn(ROWS, 4, 3000)
    with torch.no_grad():
        wanted = row_selection.synthsleepnet_frames(model, signals, held)
        torch.testing.assert_close(model.encode_frames(signals, held), wanted, atol=1e-5, rtol=1e-5)
        given = model.encode_frames(signals[:, places], held[:, places], channels)
        torch.testing.assert_close(given, wanted, atol=1e-5, rtol=1e-5)
        subsets = [[True] * len(places), [name == "ECG" for name in channels]]
        found = model.encode_subsets(signals[:, places], held[:, places], subsets, channels)
        torch.testing.assert_close(found[0], wanted.mean(1), atol=1e-5, rtol=1e-5)
        only = held & torch.tensor([name == "ECG" for name in CHANNELS])
        wanted = row_selection.synthsleepnet_frames(model, signals, only).mean(1)
        torch.testing.assert_close(found[1], wanted, atol=1e-5, rtol=1e-5)


def test_backbones_of_channels_that_nobody_has_do_not_run() -> None:
    model, ran = encoder().eval(), []
    for name, part in model.backbones.encoders.items():
        part.frame_backbone.register_forward_hook(lambda module, args, out, name=name: ran.append((name, len(args[0]))))
    signals, present = torch.randn(3, 4, 3000), torch.zeros(3, 4, dtype=torch.bool)
    present[0, 1] = present[2, 1] = True
    model.encode(*held_channels(signals, present, CHANNELS))
    assert ran == [("EEG", 3)]
    given, there, names = held_channels(signals, torch.zeros_like(present), CHANNELS)
    assert given.shape == (3, 1, 3000) and not there.any() and names == ["EEG_C3"]


def test_a_neuronet_on_a_processor_computes_no_row_that_is_absent() -> None:
    model, ran = encoder("neuronet", ("EEG_C3", "EEG_C4")), []
    model.encoder.frame_backbone.register_forward_hook(lambda module, args, out: ran.append(len(args[0])))
    present = torch.tensor([[1, 0], [0, 0], [1, 1], [0, 1]]).bool()
    signals = torch.randn(4, 2, 3000)
    found = model.eval().encode_frames(signals, present)
    assert ran == [4] and not found[1].any()
    torch.testing.assert_close(found[2], model.encode_frames(signals, torch.ones_like(present))[2])
    assert not model.encode_frames(signals, torch.zeros_like(present)).any()


NORMS: dict[str, Callable[[], nn.Module]] = {
    "a projector": lambda: mlp((6, 5, 4, 3)),
    "a norm": lambda: RowBatchNorm(6),
    "a norm that averages": lambda: RowBatchNorm(6, momentum=None),
}


@pytest.mark.parametrize(("kind", "dtype"), [*((kind, torch.float32) for kind in NORMS), ("a norm", torch.bfloat16)])
@pytest.mark.parametrize("existing", [0, 1, 2, 30])
def test_row_networks_see_the_rows_that_exist(kind: str, existing: int, dtype: torch.dtype) -> None:
    """Against fp64, on the same rows."""
    torch.manual_seed(existing)
    dense = prepared(NORMS[kind]()).train()
    rows = copy.deepcopy(dense).double()
    valid = torch.zeros(4, 10, dtype=torch.bool)
    valid.view(-1)[torch.randperm(40)[:existing]] = True
    # Far from zero, so that careless sums would show.
    x = (20 + 3 * torch.randn(4, 10, 6)).to(dtype)
    one, other = x.clone().requires_grad_(), x.double().requires_grad_()
    found, wanted = on_valid(dense, one, valid), row_selection.on_valid(rows, other, valid)
    assert found.dtype == dtype
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found.double(), wanted, atol=tolerance, rtol=tolerance)
    weight = torch.randn(found.shape)
    (found * weight).sum().backward()
    (wanted * weight).sum().backward()
    assert one.grad is not None and other.grad is not None and not one.grad[~valid].any()
    torch.testing.assert_close(one.grad.double(), other.grad, atol=tolerance, rtol=tolerance)
    assert_same(dense, rows.float(), 5 * tolerance)


def sequences() -> tuple[Tensor, Tensor]:
    """Three sequences of 12 epochs, of which the second and the third are shorter."""
    return torch.randn(3, 12, 32), torch.arange(12)[None] < torch.tensor([12, 7, 1])[:, None]


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", ["mamba", "lstm", "attention"])
def test_a_context_sees_the_epochs_that_exist(kind: str, bidirectional: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    config = ContextConfig(kind=kind, bidirectional=bidirectional, d_state=8, headdim=16, heads=4)
    dense = prepared(build_context(config, 32)).train()
    rows = copy.deepcopy(dense)
    x, valid = sequences()
    found = dense(torch.where(valid[..., None], x, torch.nan), valid)[valid]
    monkeypatch.setattr(context, "on_valid", row_selection.on_valid)
    wanted = rows(x, valid)[valid]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    found.square().sum().backward()
    wanted.square().sum().backward()
    assert_same(dense, rows, 1e-4)


def test_a_bidirectional_lstm_reads_every_sequence_from_its_own_end() -> None:
    """Against packed sequences, whose lengths are on the host."""
    config = ContextConfig(kind="lstm", bidirectional=True)
    layer = list(build_context(config, 32))[1].inner
    x, valid = sequences()
    packed = nn.utils.rnn.pack_padded_sequence(x, valid.sum(1), batch_first=True, enforce_sorted=False)
    wanted = layer.out(nn.utils.rnn.pad_packed_sequence(layer.lstm(packed)[0], batch_first=True, total_length=12)[0])
    torch.testing.assert_close(layer(x, valid)[valid], wanted[valid], atol=1e-5, rtol=1e-5)


def test_a_masked_context_trains_as_on_the_epochs_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    inner = encoder("neuronet", ("EEG_C3", "EEG_C4"))
    settings = MaskedContextConfig(context=ContextConfig(bidirectional=True, d_state=8, headdim=16), length=12, span=2)
    dense = prepared(MaskedContext(settings, inner)).train()
    rows = copy.deepcopy(dense)
    x, valid = torch.randn(3, 12, dense.dim), torch.arange(12)[None] < torch.tensor([12, 7, 0])[:, None]
    noise = torch.rand(3, *dense.noise_shape)
    found = dense(torch.where(valid[..., None], x, 50.0), valid, noise)
    monkeypatch.setattr(context, "on_valid", row_selection.on_valid)
    outputs: list[Tensor] = []
    rows.predict.register_forward_hook(lambda module, args, out: outputs.append(args[0].detach()))
    wanted = rows(x, valid, noise)
    torch.testing.assert_close(found.loss, wanted.loss, atol=1e-5, rtol=1e-5)
    there = outputs[0][valid]
    torch.testing.assert_close(found.parts["context_std"], context_std(there), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.parts["context_rank"], context_rank(there), atol=1e-4, rtol=1e-4)
    found.loss.backward()
    wanted.loss.backward()
    assert_same(dense, rows, 1e-4)


def context_std(rows: Tensor) -> Tensor:
    return (nn.functional.normalize(rows, dim=1).std(0, correction=0) * rows.shape[1] ** 0.5).mean()


def context_rank(rows: Tensor) -> Tensor:
    share = torch.linalg.svdvals((rows - rows.mean(0)).double())
    share = share / share.sum()
    return torch.special.entr(share).sum().exp().float()


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("mode", ["frozen", "lora", "full"])
@pytest.mark.parametrize("kind", ["synthsleepnet", "neuronet", "neuronet, rows not counted"])
def test_a_fine_tune_trains_as_on_the_epochs_that_exist(
    kind: str, mode: str, recomputed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epochs without a channel, channels that some epochs lack, and padding."""
    kind, _, uncounted = kind.partition(", ")
    if uncounted:
        monkeypatch.setattr(neuronet, "is_countable", lambda present: False)
    channels = CHANNELS if kind == "synthsleepnet" else ("EEG_C3", "EEG_C4")
    source = encoder(kind, channels)
    config = DownstreamConfig(
        task="stage",
        classes=("W", "N1", "N2", "N3", "REM"),
        encoder=model_config(source),
        tune=TuneConfig(mode=mode),
        context=ContextConfig(kind="mamba", d_state=8, headdim=16),
    )
    dense = Downstream(config, source)
    # As after some steps: updates that do something.
    dense = prepared(dense).double().train()
    rows = copy.deepcopy(dense)
    if recomputed:
        assert recompute_activations(dense)
    signals = torch.randn(2, 4, len(channels), 3000, dtype=torch.float64)
    present = torch.ones(2, 4, len(channels), dtype=torch.bool)
    present[0, 1], present[0, 3, 0], present[1, :, 1] = False, False, False
    valid = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]).bool()
    seen = present.any(2) & valid
    with in_fp64(), pytest.MonkeyPatch.context() as patch:
        found = dense(signals, present, valid)[seen]
        found.square().sum().backward()
        patch.setattr(context, "on_valid", row_selection.on_valid)
        patch.setattr(heads, "on_valid", row_selection.on_valid)
        patch.setattr(Downstream, "encode_frames", row_selection.downstream_frames)
        wanted = rows(signals, present, valid)[seen]
        wanted.square().sum().backward()
    torch.testing.assert_close(found, wanted, atol=1e-7, rtol=1e-7)
    assert_same(dense, rows, 1e-6)


def test_a_model_is_told_which_channels_it_gets() -> None:
    model = encoder().eval()
    assert isinstance(model, SynthSleepNet)
    with pytest.raises(ModelError, match=r"unknown channels EOG_L; this model takes any of EEG_C3"):
        model.encode(torch.randn(1, 1, 3000), torch.ones(1, 1, dtype=torch.bool), ["EOG_L"])
    with pytest.raises(ModelError, match=r"presence \[B, 1\] for channels ECG, found \[1, 2, 3000\]"):
        model.encode(torch.randn(1, 2, 3000), torch.ones(1, 2, dtype=torch.bool), ["ECG"])
