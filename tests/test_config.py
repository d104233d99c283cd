"""Configuration files: inheritance, overrides, and errors that name the key."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, TypeAdapter, model_validator

import sleepfm
from shards.build_config import BuildConfig
from sleepfm.config import KEYS_OF_COMMANDS, Config, apply_overrides, digest, load_config, read_yaml, to_dict, to_yaml
from sleepfm.demo.steps import DemoConfig
from sleepfm.demo.weights import WeightsConfig
from sleepfm.errors import ConfigError
from sleepfm.paths import config_root
from sleepfm.signals.cohorts.cohort import Cohort
from sleepfm.stages.downstream_config import FinetuneConfig, ProbeConfig, RecordingProbeConfig
from sleepfm.stages.pretrain import PretrainConfig
from sleepfm.synthetic.variety.config import Variety


class Optimiser(Config):
    lr: float = 1e-3
    steps: int = 10


class Job(Config):
    name: str
    optimiser: Optimiser = Optimiser()


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_file_wins_over_what_it_extends_and_an_override_over_both(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", "name: base\noptimiser: {lr: 0.1, steps: 5}\n")
    path = write(tmp_path, "jobs/job.yaml", "extends: ../base.yaml\nname: job\noptimiser: {steps: 7}\n")
    job = load_config(Job, path, ["optimiser.lr=1e-4"])
    assert (job.name, job.optimiser.lr, job.optimiser.steps) == ("job", 1e-4, 7)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: a\noptimiser: {lr: 1}\nname: b\n", "line 3: key 'name' is already in line 1"),
        ("name: a\noptimiser:\n  lr: 1\n  steps: 2\n  lr: 2\n", "line 5: key 'lr' is already in line 3"),
        ("name: a\noptimiser: {lr: 1, lr: 1}\n", "line 2: key 'lr' is already in line 2"),
        ("name: a\noptimiser: {1: 1, '1': 1}\n", "line 2: key '1' is already in line 2"),
        ("name: a\noptimiser:\n\tlr: 1\n", "line 3: .*with a tab; indent with spaces"),
        ("name: a\noptimiser:\n  lr: 1\n\tsteps: 1\n", "line 4: .*with a tab; indent with spaces"),
        ("name: a\noptimiser: [1\n", "line 3: .*expected"),
    ],
)
def test_what_is_no_yaml_is_told_with_its_line(tmp_path: Path, text: str, told: str) -> None:
    """Of a key that stands twice YAML would take the last, and what the first says would be lost."""
    path = write(tmp_path, "job.yaml", text)
    with pytest.raises(ConfigError, match=rf"job\.yaml: not valid YAML \({told}"):
        load_config(Job, path)
    below = write(tmp_path, "below.yaml", "extends: job.yaml\nname: x\n")
    with pytest.raises(ConfigError, match=rf"job\.yaml: .*{told}"):
        load_config(Job, below)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_file_in_another_encoding_is_to_be_saved_as_utf_8(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "job.yaml").write_bytes("name: a\n# für\n".encode(encoding))
    line = 2 if encoding == "latin-1" else 1
    with pytest.raises(ConfigError, match=rf"job\.yaml: line {line}: .*save the file as UTF-8"):
        load_config(Job, tmp_path / "job.yaml")


def test_a_mark_of_byte_order_and_merged_keys_are_read(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("name: a\noptimiser: {lr: 3}\n", encoding="utf-8-sig")
    assert load_config(Job, tmp_path / "job.yaml").optimiser.lr == 3
    path = write(tmp_path, "b.yaml", "name: &n {lr: 1, steps: 2}\noptimiser: {<<: *n, lr: 4}\n")
    assert read_yaml(path)["optimiser"] == {"lr": 4, "steps": 2}


def test_an_override_with_a_key_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="lr"):
        apply_overrides({}, ["optimiser={lr: 1, lr: 2}"])


def test_later_bases_win(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "name: a\n")
    write(tmp_path, "b.yaml", "name: b\n")
    assert read_yaml(write(tmp_path, "c.yaml", "extends: [a.yaml, b.yaml]\n")) == {"name": "b"}


def test_interpolations_are_resolved_with_and_without_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, "i.yaml", "name: run-${optimiser.steps}\noptimiser: {steps: 7}\n")
    assert load_config(Job, path).name == "run-7"
    assert load_config(Job, path, ["optimiser.steps=8"]).name == "run-8"


class Fast(Config):
    kind: Literal["fast"] = "fast"
    steps: int = 1


class Slow(Config):
    kind: Literal["slow"] = "slow"
    rest: float = 1.0


class Split(Config):
    train: float = 0.5
    test: float = 0.5

    @model_validator(mode="after")
    def _whole(self) -> Split:
        if self.train + self.test != 1:
            raise ValueError(f"the fractions sum to {self.train + self.test:g}")
        return self


class Run(Config):
    name: str
    split: Split = Split()
    plan: Annotated[Fast | Slow, Field(discriminator="kind")] = Fast()
    sources: list[Split] = []


@pytest.mark.parametrize(
    ("text", "overrides", "told"),
    [
        ("name: a\n", ["split.trian=1"], r"command line: unknown key 'split\.trian'; did you mean 'split\.train'\?"),
        ("name: a\n", ["split.train=all"], "command line: key 'split.train': expected a number \\(found 'all'\\)"),
        ("name: a\n", ["split=7"], "command line: key 'split': .*"),
        ("name: a\n", ["splti.train=1"], r"command line: unknown key 'splti'; did you mean 'split'\?"),
        # What stands in the file is the file's, whatever else is given.
        ("name: a\nsplti: {}\n", ["split.train=0.5"], r".*run\.yaml: line 2: unknown key 'splti'; did you mean 'split'\?"),
        (
            "name: a\nsplti: {}\n",
            ["split.tset=1", "nmae=b"],
            r"command line: unknown key 'split\.tset'.*; unknown key 'nmae'.*; \S*run\.yaml: line 2: unknown key 'splti'.*",
        ),
        # One that the override takes the place of is no fault any more.
        ("name: a\nsplit: {train: all}\n", ["split.train=half"], "command line: key 'split.train': .*found 'half'.*"),
        # Neither is wrong alone.
        (
            "name: a\nsplit: {test: 0.3, train: 0.7}\n",
            ["split.train=0.9"],
            r".*run\.yaml with split\.train of the command line: .*1\.2",
        ),
        ("name: a\nsplit: {test: 0.3}\n", ["name=b"], r".*run\.yaml: line 2: key 'split': the fractions sum to 0\.8.*"),
        # Members of a union have names of their own, which no key has.
        ("name: a\nplan: {kind: slow}\n", ["plan.rest=long"], "command line: key 'plan.slow.rest': .*"),
        ("name: a\nplan: {kind: slow, rest: long}\n", ["name=b"], r".*run\.yaml: line 2: key 'plan\.slow\.rest': .*"),
        ("name: ${nope}\n", [], r".*run\.yaml: Interpolation key 'nope' not found"),
        ("name: ${nope}\n", ["split.train=0.5"], r".*run\.yaml: Interpolation key 'nope' not found"),
        ("name: a\n", ["name=${nope}"], r"command line: overrides name=\$\{nope\}: Interpolation key 'nope' not found"),
    ],
)
def test_what_is_wrong_is_looked_for_where_it_was_stated(tmp_path: Path, text: str, overrides: list[str], told: str) -> None:
    path = write(tmp_path, "run.yaml", text)
    with pytest.raises(ConfigError) as caught:
        load_config(Run, path, overrides)
    assert re.fullmatch(told, str(caught.value)), str(caught.value)


def test_unknown_key_names_the_nearest_one(tmp_path: Path) -> None:
    path = write(tmp_path, "job.yaml", "name: x\n")
    with pytest.raises(ConfigError, match=r"unknown key 'optimiser\.stepz'.*optimiser\.steps"):
        load_config(Job, path, ["optimiser.stepz=3"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "not valid YAML"),
        ("- a\n- b\n", "a configuration is a mapping"),
        ("extends: missing.yaml\n", r"job\.yaml: extends 'missing\.yaml', which is no file beside it and no shipped one"),
        ("extends: job.yaml\n", "extends itself"),
        ("optimiser: {lr: fast}\nname: x\n", r"optimiser\.lr.*found 'fast'"),
        ("optimiser: {}\n", "'name'"),
    ],
)
def test_a_wrong_file_is_refused_with_its_name_and_reason(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, "job.yaml", text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(Job, path)
    assert "yaml" in str(caught.value)


READERS = {
    "`sleepfm pretrain`": [PretrainConfig],
    "`sleepfm finetune`": [FinetuneConfig],
    "`sleepfm recordings`": [RecordingProbeConfig],
    "`sleepfm probe`": [ProbeConfig],
    "`sleepfm probe`, `finetune` or `recordings`": [ProbeConfig, FinetuneConfig, RecordingProbeConfig],
    "`sleepfm build`": [BuildConfig],
    "`sleepfm synth`": [Variety],
    "`make demo` or `make weights`": [DemoConfig, WeightsConfig],
    "the option --cohort": [Cohort],
}


def test_keys_that_tell_a_command_are_its_own() -> None:
    schemas = {schema for readers in READERS.values() for schema in readers}
    assert KEYS_OF_COMMANDS.keys() == READERS.keys()
    for command, keys in KEYS_OF_COMMANDS.items():
        for key in keys:
            assert {schema for schema in schemas if key in schema.model_fields} == set(READERS[command]), key


@pytest.mark.parametrize(
    ("schema", "name", "told"),
    [
        (ProbeConfig, "pretrain/eeg-tiny.yaml", "is a configuration for `sleepfm pretrain` (it has the keys model, monitor)"),
        (ProbeConfig, "downstream/finetune-stage-tiny.yaml", "is a configuration for `sleepfm finetune`"),
        (FinetuneConfig, "downstream/recordings-age-tiny.yaml", "is a configuration for `sleepfm recordings`"),
        (FinetuneConfig, "downstream/few-labels-stage-tiny.yaml", "for `sleepfm probe` (it has the keys grid, curve)"),
        (PretrainConfig, "downstream/probe-stage-tiny.yaml", "for `sleepfm probe` (it has the key head, but neither tune nor"),
        (RecordingProbeConfig, "downstream/probe-stage-tiny.yaml", "is a configuration for `sleepfm probe` (it has the key head"),
        (RecordingProbeConfig, "downstream/probe-base.yaml", "is a configuration for `sleepfm probe` (it has the key head"),
        (
            PretrainConfig,
            "downstream/recordings-age-tiny.yaml",
            "is a configuration for `sleepfm recordings` (it has the key pool)",
        ),
        (PretrainConfig, "shards.yaml", "is a configuration for `sleepfm build`"),
        (BuildConfig, "synthetic/train.yaml", "is a configuration for `sleepfm synth`"),
        (BuildConfig, "demo/default.yaml", "is a configuration for `make demo`"),
        (BuildConfig, "cohorts/shhs1.yaml", "is a configuration for the option --cohort"),
        (Cohort, "pretrain/eeg-tiny.yaml", "is a configuration for `sleepfm pretrain`"),
    ],
)
def test_a_file_for_another_command_says_for_which(schema: type[Config], name: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(schema, name)
    assert str(caught.value).startswith(f"{name}: ") and told in str(caught.value)
    assert str(caught.value).endswith(f"; give one for this command, for example {schema.example}")


def test_a_file_for_several_commands_names_them(tmp_path: Path) -> None:
    path = write(tmp_path, "job.yaml", "task: stage\n")
    with pytest.raises(ConfigError) as caught:
        load_config(PretrainConfig, path)
    assert "is a configuration for `sleepfm probe`, `finetune` or `recordings` (it has the key task)" in str(caught.value)


@pytest.mark.parametrize("name", ["probe-stage-base", "probe-stage-tiny", "probe-apnea-tiny"])
def test_a_fine_tune_takes_the_file_of_a_probe_only_if_it_is_told_how(name: str) -> None:
    path = f"downstream/{name}.yaml"
    with pytest.raises(ConfigError) as caught:
        load_config(FinetuneConfig, path)
    assert str(caught.value) == (
        f"{path}: is a configuration for `sleepfm probe` (it has the key head, but neither tune nor context); give one for this "
        "command, for example downstream/finetune-stage-base.yaml, or state tune"
    )
    assert load_config(FinetuneConfig, path, ["tune.mode=frozen"]).tune.mode == "frozen"
    load_config(ProbeConfig, path)


@pytest.mark.parametrize("name", ["models/neuronet-tiny.yaml", "deepspeed/zero1-auto.yaml"])
def test_a_part_without_training_is_for_no_command(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(PretrainConfig, name)
    parts = re.escape(f"{name}: is a part of configurations (") + r".*eeg-tiny\.yaml.* and \d+ more"
    told = "), not one of a command: it has no section train; give one for this command, for example pretrain/eeg-base.yaml"
    assert re.fullmatch(f"{parts}{re.escape(told)}", str(caught.value))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "own.yaml: is empty; missing are train, registry, data, model; "),
        ("# later\n", "own.yaml: is empty; missing are train, registry, data, model; "),
        (
            "train: {passes: 5}\n",
            "own.yaml: line 1: key 'train.output': missing; line 1: key 'train.lr': missing; key 'registry': ",
        ),
    ],
)
def test_a_file_that_lacks_what_every_one_has_is_told_how_to_begin(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(PretrainConfig, write(tmp_path, "own.yaml", text))
    assert said in str(caught.value) and "Field required" not in str(caught.value)
    assert str(caught.value).endswith("; begin it with `extends: pretrain/eeg-base.yaml`, and write below what is to differ")
    write(tmp_path, "own.yaml", f"extends: pretrain/eeg-base.yaml\n{text}")
    load_config(PretrainConfig, tmp_path / "own.yaml")


@pytest.mark.parametrize("name", ["pretrain/eeg-tiny.yaml", "configs/pretrain/eeg-tiny.yaml", "eeg-tiny.yaml"])
def test_a_file_extends_a_shipped_one_by_the_name_that_commands_take(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, "own.yaml", f"extends: {name}\ntrain: {{steps: 7}}\n")
    assert load_config(PretrainConfig, path).train.steps == 7
    write(tmp_path, name, "train: {steps: 9, lr: nan}\n")
    assert read_yaml(path) == {"train": {"steps": 7, "lr": "nan"}}


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("../models/neuronet-tiny.yaml", "did you mean models/neuronet-tiny.yaml?"),
        ("downstream/eeg-tiny.yaml", "did you mean pretrain/eeg-tiny.yaml?"),
        ("pretrain/mine.yaml", "shipped ones are named as in pretrain/eeg-tiny.yaml"),
    ],
)
def test_what_cannot_be_extended_is_told_of_the_file_that_names_it(tmp_path: Path, name: str, hint: str) -> None:
    path = write(tmp_path, "own.yaml", f"extends: {name}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(PretrainConfig, path)
    assert str(caught.value) == f"{path}: extends {name!r}, which is no file beside it and no shipped one; {hint}"


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("eeg-base.yaml", "pretrain/eeg-base.yaml"),
        ("pretrain/probe-base", "downstream/probe-base.yaml"),
        ("pretrain/eeg-tny.yaml", "pretrain/eeg-tiny.yaml"),
        ("configs/pretrain/multimodel-tiny", "pretrain/multimodal-tiny.yaml"),
        ("downstream/probe-stage-bsae.yaml", "downstream/probe-stage-base.yaml"),
        ("eeg-tny.yaml", "pretrain/eeg-tiny.yaml"),
        ("x.yaml", ""),
        ("pretrain/mine.yaml", ""),
    ],
)
def test_a_file_that_is_not_there_may_be_a_shipped_one(
    given: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load_config(PretrainConfig, given)
    if meant:
        assert str(caught.value) == f"{given}: no such file; did you mean {meant}?"
    else:
        said = "no such file, and none is shipped under this name; give one for this command, for example pretrain/eeg-base.yaml"
        assert str(caught.value) == f"{given}: {said}"


@pytest.mark.parametrize("schema", sorted({schema for readers in READERS.values() for schema in readers}, key=str))
def test_the_example_of_a_kind_is_shipped_and_of_that_kind(schema: type[Config]) -> None:
    load_config(schema, schema.example)
    read_yaml(config_root() / (schema.begin_with or schema.example))


@pytest.mark.parametrize("override", ["steps", "=3", ""])
def test_an_override_without_key_or_value_is_refused(override: str) -> None:
    with pytest.raises(ConfigError, match="key=value"):
        apply_overrides({}, [override])


@pytest.mark.parametrize("override", ["data.path=", "data.path= "])
def test_an_override_without_a_value_is_refused_by_its_key(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(PretrainConfig, "pretrain/eeg-base.yaml", [override])
    assert str(caught.value) == "command line: data.path is empty; write its value behind the =, or null for none"


@pytest.mark.parametrize("override", ["optimiser={lr:{a:1}}", "optimiser=[1, 2", "name=*missing"])
def test_an_override_whose_value_is_no_yaml_is_refused_by_name(override: str) -> None:
    with pytest.raises(ConfigError, match=rf"override '{re.escape(override)}': not valid YAML \(.*\[1, 2\]") as caught:
        apply_overrides({}, ["name=x", override])
    assert "\n" not in str(caught.value)


@given(st.floats(1e-6, 1.0), st.integers(1, 10**6))
def test_yaml_round_trip_keeps_the_digest(lr: float, steps: int) -> None:
    import yaml

    job = Job(name="x", optimiser=Optimiser(lr=lr, steps=steps))
    again = Job.model_validate(yaml.safe_load(to_yaml(job)))
    assert again == job
    assert digest(again) == digest(to_dict(job))


def test_digest_ignores_key_order_and_sees_values() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


def test_every_default_would_be_accepted_as_a_value() -> None:
    for module in pkgutil.walk_packages(sleepfm.__path__, "sleepfm."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    schemas = [Config]
    for schema in schemas:
        schemas += [found for found in schema.__subclasses__() if found.__module__.startswith("sleepfm.")]
    assert len(schemas) > 20
    for schema in schemas:
        for name, field in schema.model_fields.items():
            if not field.is_required():
                default = field.get_default(call_default_factory=True)
                again = TypeAdapter(Annotated[field.annotation, field]).validate_python(default)
                assert again == default, f"{schema.__name__}.{name}"


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        ("pretrain/scale-64gpu.yaml", "ecg-64gpu.yaml, eeg-64gpu.yaml, emg-64gpu.yaml, eog-64gpu.yaml and 3 more"),
        (
            "downstream/probe-tiny.yaml",
            "probe-apnea-tiny.yaml, probe-arousal-tiny.yaml, probe-hypopnea-tiny.yaml, probe-stage-tiny.yaml",
        ),
    ],
)
def test_a_part_of_configurations_names_those_that_extend_it(name: str, whole: str) -> None:
    schema = PretrainConfig if name.startswith("pretrain") else ProbeConfig
    with pytest.raises(ConfigError, match=r"key 'train\.output': missing; .*key '(task|model)': missing") as caught:
        load_config(schema, config_root() / name)
    assert str(caught.value).endswith(f"this file is a part of other configurations, which give the rest: {whole}")
    with pytest.raises(ConfigError) as caught:
        load_config(PretrainConfig, config_root() / "pretrain/eeg-tiny.yaml", ["train.stepz=1"])
    assert "part of other" not in str(caught.value)
