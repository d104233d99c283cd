"""The ``sleepfm`` command as its user meets it: help that explains everything, examples that are right, completion, jobs."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sleepfm import cli
from sleepfm.command_line import parse
from sleepfm.commands import models
from sleepfm.paths import find_config
from sleepfm.training.job_options import LAUNCH

ROOT = Path(__file__).resolve().parents[1]


def below(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield command
                yield from below(command)


PARSERS = {parser.prog: parser for parser in below(cli.front_parser(cli.COMMANDS))}


def test_the_commands_are_shown_by_group(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    shown = capsys.readouterr().out
    places = [shown.index(f"\n{title}:\n") for title in cli.GROUPS]
    assert places == sorted(places)
    assert all(f"\n  {name} " in shown and command.summary in shown for name, command in cli.COMMANDS.items())


def test_without_a_command_the_commands_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([])
    shown = capsys.readouterr()
    assert ended.value.code == 2
    with pytest.raises(SystemExit) as ended:
        cli.main(["help"])
    assert ended.value.code == 0 and (shown.out, shown.err) == ("", capsys.readouterr().out)
    with pytest.raises(SystemExit):
        cli.main(["help", "score"])
    assert capsys.readouterr().out.startswith("usage: sleepfm score ")


@pytest.mark.parametrize(
    ("word", "said"),
    [("scor", "no command 'scor'; did you mean 'score'?"), ("xyzzy", "no command 'xyzzy'; `sleepfm help` lists the commands")],
)
def test_a_command_that_there_is_not(word: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([word, "x"])
    assert ended.value.code == 2
    usage, line = capsys.readouterr().err.splitlines()
    assert usage.startswith("usage: sleepfm ") and line == f"sleepfm: error: {said}"


@pytest.mark.parametrize("prog", PARSERS)
def test_every_argument_is_explained_with_its_default(prog: str) -> None:
    actions = [action for action in PARSERS[prog]._actions if not isinstance(action, argparse._SubParsersAction)]
    assert [action.dest for action in actions if not action.help] == []
    for action in actions:
        if action.option_strings and action.default not in (None, False, [], "", argparse.SUPPRESS):
            assert "(default: " in str(action.help), action.dest


@pytest.mark.parametrize("prog", PARSERS)
def test_examples_are_accepted(prog: str) -> None:
    text = PARSERS[prog].format_help()
    examples = [line.strip() for line in text.partition("example")[2].splitlines() if line.startswith("  sleepfm ")]
    assert examples, text
    for example in examples:
        words = shlex.split(example.split(">")[0])[1:]
        arguments = parse(cli.front_parser(cli.COMMANDS), words)
        assert callable(arguments.run)
        for word in words:
            assert not word.endswith(".yaml") or "/" not in word or find_config(word).is_file()


def test_help_and_completion_wait_for_no_heavy_library() -> None:
    program = (
        "import sys\nfrom sleepfm import cli\n"
        "try:\n    cli.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "cli.front_parser(cli.COMMANDS)\n"
        "print([name for name in ('torch', 'ray', 'mlflow', 'mne', 'deepspeed') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_every_command_and_option(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in (*cli.COMMANDS, "--lights-off", "--retry-refused", "promote"))
    if shell == "bash":
        (tmp_path / "completion").write_text(script)
        asked = "COMP_WORDS=(sleepfm fin); COMP_CWORD=1; _shtab_sleepfm; printf '%s\\n' \"${COMPREPLY[@]}\""
        done = subprocess.run(
            ["bash", "-c", f"source {tmp_path / 'completion'}; {asked}"], capture_output=True, text=True, check=True
        )
        assert done.stdout.split() == ["finetune"]


@pytest.mark.parametrize("script", ["pretrain", "probe", "finetune", "recordings"])
def test_a_job_is_what_the_launcher_runs(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    began: list[list[str]] = []
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setattr(os, "execv", lambda program, line: began.append(line))
    leakage = [] if script == "pretrain" else ["--allow-leakage"]
    for named in (["--config", "mine.yaml"], ["mine.yaml"]):
        options = ["--processes", "2", "train.steps=3", "--resume", "must", *leakage]
        cli.main([script, "data.path=s", *named, *options])
        cli.main([script, *named, "data.path=s", *options])
    assert len(began) == 4
    for line in began:
        assert line[1:5] == ["-m", "sleepfm.training.launcher", "2", str(LAUNCH / f"{script}.py")] and Path(line[4]).is_file()
        assert line[5:] == ["mine.yaml", "data.path=s", "train.steps=3", "--resume", "must", *leakage]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["data.path=s"],
            "error: no configuration given; for example: sleepfm pretrain pretrain/eeg-base.yaml data.path=my-data-set",
        ),
        (["a.yaml", "typo"], "error: 'typo': expected key=value, for example train.steps=100; the configuration is a.yaml"),
        (
            ["--config", "a.yaml", "b.yaml"],
            "error: 'b.yaml': expected key=value, for example train.steps=100; the configuration is a.yaml",
        ),
    ],
)
def test_a_job_has_one_configuration(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["pretrain", *words]) == 2
    assert capsys.readouterr().err == f"{said}\n"


def test_a_dry_run_is_one_process_that_speaks_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    began: list[list[str]] = []
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setattr(os, "execv", lambda program, line: began.append(line))
    cli.main(["pretrain", "mine.yaml", "--processes", "64", "--dry-run"])
    assert began[0][3] == "1" and began[0][-3:] == ["--dry-run", "--processes", "64"]
    cli.main(["pretrain", "mine.yaml", "--dry-run", "--print-config"])
    assert began[1][3] == "1" and began[1][-2:] == ["--dry-run", "--print-config"]


@pytest.mark.parametrize(("words", "said"), [(["typo"], "override 'typo': expected key=value"), (["="], "override '='")])
def test_a_setting_that_is_none_is_refused(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "src").mkdir()
    assert cli.main(["build", str(tmp_path / "src"), str(tmp_path / "out"), "--workers", "1", *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("number", ["0", "-1", "some", "1.5"])
def test_a_number_of_processes_is_at_least_one(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["build", "src", "out", "--workers", number])
    assert "--workers: " in capsys.readouterr().err.splitlines()[-1]


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The last line of what argparse says of wrong usage."""
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_hours_are_a_number(capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(["synth", "nights", "--subjects", "1", "--hours", "x"], capsys)
    assert told == "sleepfm synth: error: argument --hours: 'x': expected a number of hours, for example 8 or 0.5"


def test_a_build_lacks_only_its_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(["build", str(tmp_path)], capsys) == "sleepfm build: error: the following arguments are required: OUT"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pretrain", "a.yaml", "--train.steps=5"], "train.steps=5"),
        (["build", "src", "out", "--split.salt", "x"], "split.salt=VALUE"),
        (["probe", "a.yaml", "--nope"], ""),
        (["score", "a.edf", "--out", "x", "--train.steps=5"], ""),
    ],
)
def test_a_key_is_written_without_dashes(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(words, capsys)
    (word,) = [word for word in words if word.startswith("--") and word != "--out"]
    hint = f"; if it is a key of the configuration, write it without dashes: {said}" if said else ""
    assert told == f"sleepfm {words[0]}: error: unrecognized arguments: {word}{hint}"


def test_completion_is_a_line_that_may_be_written_twice() -> None:
    text = PARSERS["sleepfm completion"].format_help()
    assert '\n  eval "$(sleepfm completion bash)"' in text and ">> " not in text


def test_a_cohort_is_called_alike_everywhere() -> None:
    found = [action for parser in PARSERS.values() for action in parser._actions if action.dest == "cohort"]
    assert len(found) == 5 and {action.metavar for action in found} == {None}


def test_the_folder_of_a_model_is_called_alike_everywhere() -> None:
    assert [prog for prog, parser in PARSERS.items() if "package folder" in " ".join(parser.format_help().split())] == []
    assert "or a model folder" in " ".join(PARSERS["sleepfm export"].format_help().split())


def test_models_lists_with_and_without_the_word() -> None:
    assert "[--json] [ACTION] ..." in " ".join(PARSERS["sleepfm models"].format_usage().split())
    options = ["--store", "s", "--name", "n", "--json"]
    for words in (options, ["list", *options], [*options, "list"]):
        found = parse(cli.front_parser(cli.COMMANDS), ["models", *words])
        assert (found.run, found.store, found.name, found.json) == (models.run, "s", "n", True)
