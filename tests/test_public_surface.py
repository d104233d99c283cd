"""The public surface is frozen: commands, their options and positions, and Python names. Adding one is a decision."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest

import sleepfm
from shards.__main__ import main as shards
from sleepfm.cli import COMMANDS, main

ROOT = Path(__file__).resolve().parents[1]

SURFACE = {
    "sleepfm synth": {
        *("OUT", "--subjects", "--hours", "--seed", "--cohort", "--clean", "--workers", "--config", "--set", "--shards"),
        "--build",
    },
    "sleepfm build": {
        *("SRC", "OUT", "key=value", "--cohort", "--workers", "--config", "--retry-refused", "--rebuild", "--exclude"),
    },
    "sleepfm verify": {"DATASET", "--workers"},
    "sleepfm info": {"DATASET"},
    "sleepfm pretrain": {"CONFIG", "key=value", "--config", "--processes", "--resume", "--dry-run", "--print-config"},
    "sleepfm probe": {
        *("CONFIG", "key=value", "--config", "--processes", "--resume", "--dry-run", "--print-config", "--allow-leakage"),
    },
    "sleepfm finetune": {
        *("CONFIG", "key=value", "--config", "--processes", "--resume", "--dry-run", "--print-config", "--allow-leakage"),
    },
    "sleepfm recordings": {
        *("CONFIG", "key=value", "--config", "--processes", "--resume", "--dry-run", "--print-config", "--allow-leakage"),
    },
    "sleepfm completion": {"SHELL"},
    "sleepfm doctor": {"DIR", "--cohort", "--json", "--sample", "--headers"},
    "sleepfm score": {
        *("EDF", "--model", "--out", "--store", "--cohort", "--channel", "--device", "--scoring", "--lights-off", "--lights-on"),
        *("--resolution", "--workers", "--again", "--json", "--precision", "--position", "--show-identity"),
    },
    "sleepfm embed": {"SRC", "--model", "--out", "--store", "--cohort", "--device"},
    "sleepfm convert": {"CKPT", "OUT", "--task", "--pretrained", "--channels"},
    "sleepfm models": {"--store", "--name", "--json", "[ACTION]"},
    "sleepfm models list": {"--store", "--name", "--json"},
    "sleepfm models promote": {"NAME", "VERSION", "--store"},
    "sleepfm models prune": {"NAME", "--keep", "--store"},
    "sleepfm models bind": {"--store"},
    "sleepfm export": {"MODEL", "--to", "--store", "--no-onnx"},
    "python -m shards build": {
        *("SRC", "OUT", "key=value", "--cohort", "--workers", "--config", "--retry-refused", "--rebuild", "--exclude"),
    },
    "python -m shards verify": {"DATASET", "--workers"},
    "python -m shards info": {"DATASET"},
    "python -m shards export": {"DATASET", "DIR", "--format", "--rule"},
}


def help_text(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    words = command.split()
    with pytest.raises(SystemExit) as ended:
        main([*words[1:], "--help"]) if words[0] == "sleepfm" else shards([*words[3:], "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


def declared(text: str) -> set[str]:
    heading = "positional arguments:" if "positional" in text else "options:"
    lines = [line.strip() for line in text.split(heading, 1)[1].splitlines()]
    names: set[str] = set()
    for line in lines:
        match = re.match(r"(--[a-z-]+|-h, --help|[A-Z]{2,}|\[ACTION\]|key=value)(\s|$)", line)
        if match and match[1] != "-h, --help":
            names.add(match[1])
    return names


@pytest.mark.parametrize("command", list(SURFACE))
def test_a_command_has_exactly_its_arguments(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Wide, so that no line of an explanation begins with what looks like an argument.
    monkeypatch.setenv("COLUMNS", "400")
    assert declared(help_text(command, capsys)) == SURFACE[command]


def test_the_list_of_commands_is_whole() -> None:
    assert {f"sleepfm {name}" for name in COMMANDS} == {
        " ".join(name.split()[:2]) for name in SURFACE if name.startswith("sleepfm")
    }


def test_python_names() -> None:
    assert set(sleepfm.__all__) == {"__version__", "from_pretrained", "load", "read_recording", "score"}
    assert all(callable(getattr(sleepfm, name)) for name in ("from_pretrained", "load", "read_recording", "score"))


def test_what_models_and_nights_offer() -> None:
    from sleepfm.inference.night_score import NightScore
    from sleepfm.models.embedding import EmbeddingModel

    assert list(inspect.signature(EmbeddingModel.embed).parameters) == ["self", "signals", "cohort"]
    assert list(inspect.signature(sleepfm.score).parameters) == ["recording", "model", "cohort"]
    offered = {"plot", "stages_frame", "hypnodensity_frame", "events_frame", "headline", "statistics", "ahi", "n_epochs"}
    assert offered <= set(dir(NightScore))
    # A type checker reads the package (tests/typed_use.py), wherever it is installed.
    assert (Path(sleepfm.__file__).parent / "py.typed").is_file()


@pytest.mark.parametrize("script", ["pretrain", "probe", "finetune", "recordings"])
def test_launch_scripts_are_importable_and_say_what_they_take(script: str) -> None:
    module = importlib.import_module(f"launch.{script}")
    assert "CONFIG [key=value" in (module.__doc__ or "")


def test_make_targets() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test", "check", "bench"} <= targets


@pytest.mark.parametrize("arguments", [["score"], ["unknown"], [], ["doctor", "recordings", "--no-such-option"]])
def test_wrong_usage_is_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: sleepfm")
