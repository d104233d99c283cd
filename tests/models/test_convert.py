"""Conversion of checkpoints in the released code's naming, written here from this package's own models.

Equality with the released code itself is in ``test_reference.py``.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sleepfm.cli import main
from sleepfm.constants import STAGE_NAMES
from sleepfm.errors import ModelError
from sleepfm.models.build import build_model
from sleepfm.models.lora import LoRALinear
from sleepfm.models.reference.convert import convert
from sleepfm.models.usage import Usage
from sleepfm.registry.package import read_config
from sleepfm.registry.registry import load

FRAME_ENCODER = {"stem": 4, "channels": [4, 4, 6, 8], "reduction": 2}
UNIMODAL = {
    "fs": 100,
    "second": 30,
    "time_window": 3,
    "time_step": 1,
    "encoder_embed_dim": 16,
    "encoder_heads": 8,
    "encoder_depths": 2,
}
DECODER = {"decoder_embed_dim": 8, "decoder_heads": 4, "decoder_depths": 1}
RELEASED = {"EEG_C3": "EEG_C4", "EEG_C4": "EEG_C3", "EOG_R": "EOG_Right"}

NEURONET = {
    "kind": "neuronet",
    "channels": ["EEG_C3", "EEG_C4"],
    "window_s": 3.0,
    "step_s": 1.0,
    "frame_encoder": FRAME_ENCODER,
    "encoder": {"dim": 16, "depth": 2, "heads": 8},
    "decoder": {"dim": 8, "depth": 1, "heads": 4},
    "projector": [12, 6],
    "position": "reference",
}
SYNTHSLEEPNET = {
    "kind": "synthsleepnet",
    "channels": list(RELEASED),
    "layout": "copies",
    "backbone": {key: value for key, value in NEURONET.items() if key != "channels"},
    "encoder": {"dim": 16, "depth": 3, "heads": 8},
    "decoder": {"dim": 8, "depth": 1, "heads": 4},
    "projector": [12, 6],
    "position": "reference",
}
DOWNSTREAM = {
    "kind": "downstream",
    "task": "stage",
    "classes": list(STAGE_NAMES),
    "encoder": SYNTHSLEEPNET,
    "context": {"kind": "mamba", "headdim": 16},
    "head": {"hidden": 8},
}


def build(config: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    model = build_model(config)
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if "lora_b" in name or name.endswith("running_mean"):
            value.data.normal_(0, 0.1)
        if name.endswith("running_var"):
            value.data.uniform_(0.5, 1.5)
    return model.eval()


def backbone_name(name: str) -> str:
    name = re.sub(r"branches\.(\d)\.(\d)", lambda m: f"model.layer{'357'[int(m[1])]}x{'357'[int(m[1])]}_{int(m[2]) + 1}.0", name)
    name = name.replace("stem.0", "model.conv1").replace("stem.1", "model.bn1")
    name = re.sub(r"(^|\.)blocks\.", r"\1encoder_block.", name)
    name = re.sub(r"(^|\.)norm\.", r"\1encoder_norm.", name)
    return (
        name.replace("proj.base.", "proj.base_layer.")
        .replace("lora_a", "lora_A.default.weight")
        .replace("lora_b", "lora_B.default.weight")
    )


def released_synthsleepnet(state: Mapping[str, Tensor], channels: list[str]) -> dict[str, Tensor]:
    """``state`` as peft and the released ``SynthSleepNet`` name it."""
    out = {}
    for name, value in state.items():
        head, _, rest = name.partition(".")
        if head == "backbones":
            _, channel, inner = rest.split(".", 2)
            tensor = value[0] if "lora" in inner else value
            out[f"backbone_networks.{RELEASED[channel]}.base_model.model.{backbone_name(inner)}"] = tensor
        elif head == "modality_token":
            out |= {f"modal_token_dict.{RELEASED[c]}": value[place][None] for place, c in enumerate(channels)}
        elif head == "adapters":
            channel, place, leaf = rest.split(".")
            out[f"backbone_embedded.{RELEASED[channel]}.{ {'0': 0, '1': 2, '3': 5}[place] }.{leaf}"] = value
        elif head == "decoders":
            channel, part, inner = rest.split(".", 2)
            out[f"multimodal_decoder_{ {'blocks': 'block', 'pred': 'pred'}[part] }_dict.{RELEASED[channel]}.{inner}"] = value
        elif head == "projectors":
            channel, inner = rest.split(".", 1)
            out[f"backbone_projector_dict.{RELEASED[channel]}.{inner}"] = value
        else:
            names = {"blocks": "multimodal_encoder_block", "norm": "multimodal_encoder_norm"}
            names |= {"decoder_norm": "multimodal_decoder_norm"}
            value = value[None, None] if head == "mask_token" else value
            out[".".join(filter(None, (names.get(head, head), rest)))] = value
    out["multimodal_encoder_pos_embed"] = torch.zeros(1, 28, 16)
    return out


@pytest.fixture
def unimodal(tmp_path: Path) -> tuple[Path, Any]:
    model = build(NEURONET)
    state = {}
    for name, value in model.state_dict().items():
        new = name.removeprefix("encoder.")
        if name.startswith("encoder.frame_backbone."):
            new = backbone_name(new)
        elif name.startswith("encoder."):
            new = f"autoencoder.{backbone_name(new)}"
        elif name.startswith("projector."):
            new = name.replace("projector", "projectors")
        else:
            new = f"autoencoder.{name.replace('decoder_blocks', 'decoder_block')}"
            value = value[None, None] if name == "mask_token" else value
        state[new] = value
    state["projectors_bn.running_mean"] = torch.zeros(6)
    saved = {
        "model_name": "NeuroNet-EEG",
        "model_state": state,
        "model_parameter": UNIMODAL | DECODER | {"projection_hidden": [12, 6], "temperature": 0.07},
        "hyperparameter": {"mask_ratio": 0.75, "alpha": 2.0},
    }
    torch.save(saved, tmp_path / "uni.pth")
    return tmp_path / "uni.pth", model


@pytest.fixture
def multimodal(tmp_path: Path) -> tuple[Path, Any]:
    model = build(SYNTHSLEEPNET)
    fusion = {"encoder_embed_dim": 16, "encoder_heads": 8, "encoder_depths": 3, "temperature": 0.1}
    saved = {
        "ch_names": list(RELEASED.values()),
        "lora_parameter": {"lora_r": 4, "lora_alpha": 16, "lora_dropout": 0.05},
        "unimodal_parameter": UNIMODAL,
        "multimodal_parameter": fusion | DECODER | {"projection_hidden": [12, 6]},
        "multimodal_model_state": released_synthsleepnet(model.state_dict(), list(RELEASED)),
    }
    torch.save(saved, tmp_path / "multi.pth")
    return tmp_path / "multi.pth", model


@pytest.fixture
def downstream(tmp_path: Path) -> tuple[Path, Any]:
    """A fine-tuned model whose own LoRA is still apart from its weights."""
    model = build(DOWNSTREAM)
    inner = {k.removeprefix("encoder."): v for k, v in model.state_dict().items() if k.startswith("encoder.")}
    del inner["cls_token"]
    state: dict[str, Tensor] = {}
    for name, value in released_synthsleepnet(inner, list(RELEASED)).items():
        state[f"backbone.base_model.model.{name}"] = value
    layer = "backbone.base_model.model.multimodal_encoder_block.2.mlp.fc1"
    low, high = torch.randn(4, 16), torch.randn(64, 4) / 10
    state[f"{layer}.base_layer.weight"] = state.pop(f"{layer}.weight") - 8 / 2 * high @ low
    state[f"{layer}.base_layer.bias"] = state.pop(f"{layer}.bias")
    state |= {f"{layer}.lora_A.default.weight": low, f"{layer}.lora_B.default.weight": high}
    for name, value in model.state_dict().items():
        if name.startswith("head.layers."):
            state[name.replace("head.layers", "fc")] = value
        if name.startswith("context.0.norm."):
            state[name.removeprefix("context.0.")] = value
        if name.startswith("context.1."):
            state[name.replace("context.1.inner.forwards", "mamba")] = value
    torch.save({"model_name": "MultiModal_Fine_Tuning", "model_state": state, "result": {}}, tmp_path / "down.pth")
    return tmp_path / "down.pth", model


def assert_same_state(found: nn.Module, expected: nn.Module, atol: float = 0.0) -> None:
    theirs = expected.state_dict()
    mine = found.state_dict()
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        if name.endswith("cls_token") and value.ndim == 3 and name == "encoder.cls_token":
            continue
        torch.testing.assert_close(value, theirs[name], atol=atol, rtol=0, msg=name)


def test_unimodal(unimodal: tuple[Path, Any]) -> None:
    path, model = unimodal
    found = convert(path).module
    assert_same_state(found, model)
    assert found.config.temperature == 0.07
    assert (found.config.mask_ratio, found.config.alpha) == (0.75, 2.0)
    assert not found.training


def test_multimodal(multimodal: tuple[Path, Any]) -> None:
    path, model = multimodal
    conversion = convert(path)
    assert_same_state(conversion.module, model)
    assert conversion.module.channels == tuple(RELEASED)
    assert "swaps C3 and C4" in conversion.notes[0]


@pytest.mark.parametrize("given", [True, False])
def test_downstream(downstream: tuple[Path, Any], multimodal: tuple[Path, Any], given: bool) -> None:
    path, model = downstream
    conversion = convert(path, "stage", STAGE_NAMES, multimodal[0] if given else None)
    assert_same_state(conversion.module, model, atol=1e-6)
    assert any("merged" in note for note in conversion.notes)
    x, present = torch.randn(2, 4, 3, 3000), torch.ones(2, 4, 3, dtype=torch.bool)
    with torch.no_grad():
        torch.testing.assert_close(conversion.module(x, present), model(x, present), atol=1e-5, rtol=1e-5)


def test_command_writes_a_package_that_loads(
    unimodal: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, model = unimodal
    assert main(["convert", str(path), str(tmp_path / "out")]) == 0
    assert "neuronet" in capsys.readouterr().out
    x = torch.randn(2, 3000)
    assert torch.equal(load(tmp_path / "out").embed({"EEG_C4": x}), model.embed({"EEG_C4": x}))


def test_command_says_how_a_downstream_model_is_used(downstream: tuple[Path, Any], tmp_path: Path) -> None:
    assert main(["convert", str(downstream[0]), str(tmp_path / "out")]) == 0
    assert read_config(tmp_path / "out")["usage"]["window"] == 20
    usage = load(tmp_path / "out").usage
    assert isinstance(usage, Usage) and usage == convert(downstream[0], "stage", STAGE_NAMES).module.usage
    assert (usage.task, usage.classes, usage.threshold) == ("stage", STAGE_NAMES, None)


def test_command_replaces_its_own_package_alone(
    unimodal: tuple[Path, Any], multimodal: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine, out = tmp_path / "mine", tmp_path / "out"
    mine.mkdir()
    (mine / "config.yaml").write_text("mine")
    assert main(["convert", str(unimodal[0]), str(mine)]) == 1
    assert [(path.name, path.read_text()) for path in mine.iterdir()] == [("config.yaml", "mine")]
    for _ in range(2):
        assert main(["convert", str(unimodal[0]), str(out)]) == 0
    before = (out / "config.yaml").read_bytes()
    assert main(["convert", str(multimodal[0]), str(out)]) == 1
    assert (out / "config.yaml").read_bytes() == before
    assert "holds the converted package of" in capsys.readouterr().err


def edited(path: Path, **changes: Any) -> Path:
    saved = torch.load(path, weights_only=True)
    for key, value in changes.items():
        saved[key] = {**saved[key], **value} if isinstance(value, dict) else value
    torch.save(saved, path)
    return path


def test_checkpoints_that_do_not_fit_are_refused_with_names_and_shapes(
    unimodal: tuple[Path, Any], multimodal: tuple[Path, Any], downstream: tuple[Path, Any], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="predicts 5 classes; task 'apnea' comes with 2"):
        convert(downstream[0], "apnea", ("none", "apnea"))
    path = edited(unimodal[0], model_parameter={"encoder_embed_dim": 32})
    with pytest.raises(ModelError, match=r"cls_token is \[1, 1, 16\], its settings make it \[1, 1, 32\]"):
        convert(path)
    with pytest.raises(ModelError, match="for epochs of 20 s at 100 Hz"):
        convert(edited(path, model_parameter={"second": 20}))
    with pytest.raises(ModelError, match=r"a tensor 'autoencoder.extra' .* no released model has"):
        convert(edited(path, model_parameter=UNIMODAL, model_state={"autoencoder.extra": torch.ones(1)}))
    with pytest.raises(ModelError, match="does not name a modality; give --channels"):
        convert(edited(path, model_name="NeuroNet-Nose"))
    with pytest.raises(ModelError, match="channel 'EEG_X'"):
        convert(edited(multimodal[0], ch_names=["EEG_X"]))
    torch.save({"model_state": {"weight": torch.ones(1)}}, tmp_path / "other.pth")
    with pytest.raises(ModelError, match="is not a released"):
        convert(tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ModelError, match="not a checkpoint"):
        convert(tmp_path / "list.pth")


def test_missing_parts_are_named(unimodal: tuple[Path, Any]) -> None:
    path = unimodal[0]
    saved = torch.load(path, weights_only=True)
    del saved["model_state"]["autoencoder.decoder_pred.bias"]
    torch.save(saved, path)
    with pytest.raises(ModelError, match=r"lacks \['decoder_pred.bias'\]"):
        convert(path)
    del saved["model_parameter"]["encoder_heads"]
    torch.save(saved, path)
    with pytest.raises(ModelError, match="no 'encoder_heads'"):
        convert(path)


def test_converted_low_rank_updates_still_train(multimodal: tuple[Path, Any]) -> None:
    model = convert(multimodal[0]).module
    layers = [layer for layer in model.modules() if isinstance(layer, LoRALinear)]
    assert len(layers) == 2 * len(RELEASED)
    assert all(layer.lora_a.requires_grad and not layer.base.weight.requires_grad for layer in layers)


def test_command_refuses_other_files_and_writes_nothing(tmp_path: Path) -> None:
    assert main(["convert", str(Path(__file__)), str(tmp_path / "out")]) == 1
    assert not (tmp_path / "out").exists()


def blocks(language: str) -> list[str]:
    """The blocks of docs/convert.md in ``language``."""
    page = (Path(__file__).parents[2] / "docs" / "convert.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)


def test_the_documented_commands_work_as_they_stand(
    unimodal: tuple[Path, Any],
    multimodal: tuple[Path, Any],
    downstream: tuple[Path, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, (path, _) in {"unimodal": unimodal, "multimodal": multimodal, "finetuned": downstream}.items():
        (tmp_path / name).mkdir()
        path.rename(tmp_path / name / "best_model.pth")
    monkeypatch.chdir(tmp_path)
    lines = [shlex.split(line, comments=True) for block in blocks("sh") for line in block.splitlines()]
    assert lines and all(line[:2] == ["sleepfm", "convert"] for line in lines)
    for line in lines:
        assert main(line[1:]) == 0, line
    kinds = [line.split(": ")[1].split(",")[0] for line in capsys.readouterr().out.splitlines() if " parameters, " in line]
    assert kinds == ["neuronet", "neuronet", "synthsleepnet", "downstream"]
    written = {path.name for path in Path("converted/stage").iterdir()}
    assert written == {"model.safetensors", "config.yaml", "MODEL_CARD.md", ".sleepfm.json"}
    assert load("converted/c4").channels == ("EEG_C4",)
    names: dict[str, Any] = {}
    for block in blocks("python"):
        exec(compile(block, "docs/convert.md", "exec"), names)
    assert names["model"].channels == tuple(RELEASED) and not names["model"].training


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [(("out", "--task", "dreams"), 2, "dreams"), (("s3://bucket/out",), 2, "a URL"), (("out",), 1, "other.pth")],
)
def test_the_documented_refusals(
    words: tuple[str, ...],
    status: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model_state": {"weight": torch.ones(1)}}, "other.pth")
    assert main(["convert", "other.pth", *words]) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line and [path.name for path in tmp_path.iterdir()] == ["other.pth"]
