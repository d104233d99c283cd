"""A job that cannot end well does not begin, and says everything that is wrong with it at once."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from device_steps import build
from launching import CONFIG, TOY, environment, launch
from made_nights import EVERY_CHANNEL, make_dataset, make_night
from ports import free_port
from test_agreement import start
from test_cuda_types import dataset  # noqa: F401
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sleepfm.config import load_config, to_yaml
from sleepfm.data.dataset import Dataset
from sleepfm.errors import ConfigError, PreflightError, RegistryError
from sleepfm.paths import config_root
from sleepfm.registry.registry import Entry
from sleepfm.registry.store import client
from sleepfm.stages.data_config import dataset_digest
from sleepfm.stages.downstream_config import FinetuneConfig, ProbeConfig
from sleepfm.stages.pretrain import PretrainConfig, build_stage
from sleepfm.training.job import Context
from sleepfm.training.preflight import disks, host
from sleepfm.training.preflight.checks import Preflight
from sleepfm.training.preflight.configuration import doubts, faults_of_plan, split
from sleepfm.training.preflight.faults import Fault, of_all_ranks, refuse
from sleepfm.training.preflight.parents import missing_parents
from sleepfm.training.preflight.store import faults_of_store, unreachable_store
from sleepfm.training.ranks.distributed import World
from sleepfm.training.run_config import RunConfig, decisive_settings
from sleepfm.training.stage import ValidatesLoss
from sleepfm.training.tracking.sizing import Size

ALONE = World(0, 1, 0, 1)
KINDS = ["unimodal", "multimodal", "context", "probe", "fine-tune", "fine-tune, full", "events"]
LAUNCH = Path(__file__).parents[2] / "launch"


def pretraining(name: str, *overrides: str) -> PretrainConfig:
    return load_config(PretrainConfig, config_root() / "pretrain" / f"{name}.yaml", overrides)


def plan(config: RunConfig, processes: int) -> list[str]:
    return [fault.text for fault in faults_of_plan(config, World(0, processes, 0, min(processes, 8)))]


def test_a_shipped_configuration_has_no_faults_at_one_node() -> None:
    for name in ("eeg", "eog", "emg", "ecg", "multimodal", "context"):
        assert plan(pretraining(f"{name}-base"), 8) == []


def test_what_does_not_divide_and_what_is_too_small_is_said() -> None:
    (indivisible,) = plan(pretraining("eeg-base"), 1024)
    assert "train.global_batch=256 cannot be divided by train.accumulation=1 x 1024 processes" in indivisible
    (single,) = plan(pretraining("eeg-base"), 256)
    assert "gives batch norms only one row" in single and "raise train.global_batch to 512" in single
    assert plan(pretraining("eeg-base", "train.batch_norm=sync"), 256) == []
    assert plan(pretraining("eeg-base"), 128) == []
    # An epoch of 1,400 in a sequence is a row each.
    assert plan(pretraining("context-base"), 32) == []


def test_ranks_that_are_compared_divide_all_ranks() -> None:
    for value in ("global", "node", "{group: 4}"):
        assert plan(pretraining("eeg-64gpu", f"model.negatives={value}"), 64) == []
    (group,) = plan(pretraining("eeg-64gpu", "model.negatives={group: 24}"), 64)
    assert "model.negatives={group: 24}: groups of 24 ranks do not divide 64 ranks" in group
    uneven = World(0, 64, 0, 6)
    (node,) = faults_of_plan(pretraining("multimodal-64gpu", "model.negatives=node"), uneven)
    assert "model.negatives=node: groups of 6 ranks do not divide 64 ranks" in node.text and node.configured


def test_a_run_from_before_negatives_could_be_chosen_goes_on_and_others_are_other_runs() -> None:
    before = decisive_settings(pretraining("eeg-base"))
    assert "negatives" not in before["model"]
    assert decisive_settings(pretraining("eeg-base", "model.negatives=global")) == before
    assert decisive_settings(pretraining("eeg-base", "model.negatives=node"))["model"]["negatives"] == "node"


def test_a_metric_that_is_not_validated_is_said_with_the_nearest_one() -> None:
    (misspelt,) = plan(pretraining("eeg-base", "registry.metric=val/prob_kappa"), 8)
    assert (
        "registry.metric=val/prob_kappa: this job does not validate this metric" in misspelt
        and "did you mean val/probe_kappa?" in misspelt
    )
    (other,) = plan(pretraining("context-base", "registry.metric=val/loss"), 8)
    assert "there are val/reconstruction_vs_mean" in other
    config = load_config(ProbeConfig, config_root() / "downstream/probe-stage-base.yaml", ["registry.metric=val/loss"])
    assert "there are val/accuracy, " in plan(config, 8)[0]


def test_validation_items_must_cover_a_step() -> None:
    (few,) = plan(pretraining("eeg-base", "train.global_batch=1024"), 8)
    assert "data.validation_items=512" in few and "train.global_batch=1024" in few and "registry.metric" not in few
    selecting = ("registry.metric=val/loss", "registry.mode=min")
    (none,) = plan(pretraining("eeg-base", "data.validation_items=0", *selecting), 8)
    assert "no val/loss and registry.metric=val/loss" in none
    assert plan(pretraining("eeg-base", "data.validation_items=0"), 8) == []
    assert plan(pretraining("eeg-base", "data.validation_items=256", *selecting), 8) == []


def test_a_direction_in_which_the_worst_would_be_selected_is_refused() -> None:
    (worst,) = plan(pretraining("eeg-base", "registry.mode=min"), 8)
    assert "registry.mode=min: of val/probe_kappa larger is better" in worst and "set registry.mode=max" in worst
    (worst,) = plan(pretraining("eeg-base", "registry.metric=val/loss", "registry.mode=max"), 8)
    assert "registry.mode=max: of val/loss smaller is better" in worst
    (worst,) = plan(pretraining("context-base", "registry.mode=max"), 8)
    assert "of val/reconstruction_vs_mean smaller is better" in worst
    config = load_config(ProbeConfig, config_root() / "downstream/probe-apnea-base.yaml", ["registry.mode=min"])
    assert "larger is better" in plan(config, 8)[0]
    # Neither better nor worse.
    assert plan(pretraining("eeg-base", "registry.metric=val/effective_rank", "registry.mode=min"), 8) == []


def test_a_split_without_one_step_is_a_fault_whatever_selects_and_doubts_are_said(dataset: Dataset, tmp_path: Path) -> None:  # noqa: F811
    small = [
        "monitor.label_epochs=40",
        "monitor.val_epochs=40",
        "train.global_batch=128",
        "train.steps=4",
        f"data.path={dataset.path}",
    ]
    config = pretraining("eeg-tiny", *small, "data.validation_items=256", "train.warmup=4")
    stage = build_stage(config, Context(ALONE, "", "auto", config))
    (fault,) = split(config, stage)
    assert re.search(
        r"data\.validation_items: the split val has \d+ items, fewer than .*set data\.validation_items=0", fault.text
    )
    warmup, repeated = doubts(config, stage)
    assert "train.warmup=4: the run ends after 4 steps" in warmup
    assert re.search(r"train\.global_batch=128: a pass over the data set has \d+ items", repeated)
    without = pretraining("eeg-tiny", *small, "data.validation_items=0", "train.warmup=3", "train.global_batch=4")
    stage = build_stage(without, Context(ALONE, "", "auto", without))
    assert split(without, stage) == [] and doubts(without, stage) == []


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("htp://x", "tracking.uri=htp://x: htp: is not a known kind of store; did you mean http:?"),
        ("mongo://user:secret@x/db", "tracking.uri=mongo://user:***@x/db: mongo: is not a known kind of store"),
        ("http://", "names no host"),
        ("localhost:5000", "tracking.uri=localhost:5000: is no address of a store; write http://localhost:5000"),
        ("runs.db", "tracking.uri=runs.db: is no address of a store; write sqlite:///runs.db"),
        ("http://host:many", "Port could not be cast"),
        ("sqlite://runs/mlflow.db", "gives no file; write sqlite:///FILE"),
        ("sqlite:////nonexistent/folder/x.db", "no folder /nonexistent/folder; create it"),
        ("mysql+nodriver://user:secret@x/db", "tracking.uri=mysql+nodriver://user:***@x/db: is no address of a database"),
    ],
)
def test_an_address_that_no_store_can_have_is_a_fault(uri: str, said: str) -> None:
    (fault,) = faults_of_store(uri, "tracking.uri")
    assert said in fault.text and "secret" not in fault.text


def test_an_address_of_a_store_may_be_away() -> None:
    for uri in ("http://127.0.0.1:9", "https://u:secret@host/path", "sqlite:///runs/new.db", "sqlite:////tmp/x.db", "databricks"):
        assert faults_of_store(uri, "tracking.uri") == [], uri
    assert "tracking.uri=http://u:***@127.0.0.1:9: nothing answers there now" in unreachable_store(
        "http://u:secret@127.0.0.1:9", "tracking.uri"
    )
    with socket.create_server(("127.0.0.1", 0)) as there:
        assert unreachable_store(f"http://127.0.0.1:{there.getsockname()[1]}", "tracking.uri") == ""


def test_a_password_stays_out_of_files_and_parameters() -> None:
    config = pretraining("eeg-base", "tracking.uri=postgresql://user:p:ss@host/db")
    assert config.tracking.uri == "postgresql://user:p:ss@host/db"
    assert "uri: postgresql://user:***@host/db\n" in to_yaml(config)
    with pytest.raises(RegistryError, match=r"no folder /nonexistent/folder"):
        client("sqlite:////nonexistent/folder/x.db", create=True)
    assert not Path("/nonexistent").exists()


def test_an_address_that_only_reads_like_a_registered_model_is_put_right() -> None:
    (fault,) = missing_parents({"init_from": "model:/NAME@champion"}, {}, "sqlite:///none.db")
    assert fault.text.endswith("did you mean models:/NAME@champion?")
    (fault,) = missing_parents({"encoder": "NAME/3"}, {}, "sqlite:///none.db")
    assert fault.text.endswith("did you mean models:/NAME/3?")
    (fault,) = missing_parents({"encoder": "runs/some/package"}, {}, "sqlite:///none.db")
    assert "did you mean" not in fault.text


@pytest.mark.parametrize("kind", KINDS)
def test_every_stage_says_what_it_validates_and_how_many_rows_its_norms_get(
    dataset: Dataset,  # noqa: F811
    packages: Path,
    tmp_path: Path,
    kind: str,
) -> None:
    stage = build(kind, dataset.path, packages, tmp_path)
    config: RunConfig = stage.config  # type: ignore[attr-defined]
    rows: list[int] = []

    def note(module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        if module.training:
            rows.append(arguments[0].numel() // arguments[0].shape[1])

    hooks = [part.register_forward_pre_hook(note) for part in stage.module.modules() if isinstance(part, _BatchNorm)]
    loss = stage.loss(stage.module.train(), stage.stream.batch(0, 4), 1)
    for hook in hooks:
        hook.remove()
    # Absent channels and masked epochs make rows fewer, never more.
    assert bool(rows) == (config.rows_per_item() > 0)
    if rows:
        assert min(rows) <= 4 * config.rows_per_item()
        assert kind not in ("unimodal", "probe") or min(rows) == 4 * config.rows_per_item()
    assert set(config.losses()) == (
        {f"val/{name}" for name in ("loss", *loss.parts)} if isinstance(stage, ValidatesLoss) else set()
    )
    with torch.no_grad():
        assert set(stage.validate(stage.module.eval())) == set(config.figures())
    assert bool(config.parents()) == bool(stage.parents)


def test_all_faults_come_in_one_list(tmp_path: Path) -> None:
    nights = [make_night(f"night{n}", 12, EVERY_CHANNEL, seed=n) for n in range(8)]
    make_dataset(tmp_path / "set", nights, per_shard=4)
    with socket.create_server(("", 0)) as taken:
        number = taken.getsockname()[1]
        command = [sys.executable, str(LAUNCH / "pretrain.py"), str(config_root() / "pretrain/multimodal-base.yaml")]
        overrides = ["data.path=set", "train.global_batch=1030", "registry.metric=val/kappa", "encoders.ECG=somewhere"]
        place = {"RANK": "0", "WORLD_SIZE": "8", "LOCAL_RANK": "0", "LOCAL_SIZE": "8", "MASTER_ADDR": "127.0.0.1"}
        variables = environment() | place | {"MASTER_PORT": str(number), "GLOO_SOCKET_IFNAME": "nowhere0"}
        done = subprocess.run([*command, *overrides], cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "5 faults, found before the first step:" in done.stderr
    numbered = re.findall(r"^  \d\. (.*)$", done.stderr, re.MULTILINE)
    expected = ("train.global_batch=1030", "registry.metric=val/kappa", "data.validation_items=512", "nowhere0", f"port {number}")
    for text, said in zip(expected, numbered, strict=True):
        assert text in said
    assert not (tmp_path / "runs").exists()
    done = subprocess.run(
        [*command, *overrides, "--dry-run", "--processes", "4"], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    numbered = re.findall(r"^  \d\. (.*)$", done.stderr, re.MULTILINE)
    expected = (
        *expected[:3],
        "encoders.EEG, encoders.EOG, encoders.EMG: no registry",
        "encoders.ECG: somewhere: not a model folder",
    )
    for text, said in zip(expected, numbered, strict=True):
        assert text in said
    assert not (tmp_path / "runs").exists()


def test_a_disk_without_room_and_a_split_that_is_too_small_are_said_together(dataset: Dataset, tmp_path: Path) -> None:  # noqa: F811
    selecting = ["registry.metric=val/loss", "registry.mode=min", "monitor=none", "train.keep=100000000"]
    paths = [f"data.path={dataset.path}", f"train.output={tmp_path / 'run'}", "train.global_batch=128"]
    config = pretraining("eeg-tiny", *selecting, *paths)
    preflight = Preflight(config, ALONE, ALONE, f"sqlite:///{tmp_path}/none.db", "auto", dataset_digest)
    preflight.before_start()
    with pytest.raises(PreflightError, match=r"2 faults") as caught:
        preflight.stage(lambda: build_stage(config, Context(ALONE, "", "auto", config)))
    text = str(caught.value)
    assert re.search(r"the split val has \d+ items, fewer than one step of train\.global_batch=128", text)
    assert re.search(r"checkpoints and packages take \d+\.\d\d GB, but only \d+\.\d\d GB are free; make room", text)
    assert caught.value.exit_status == ConfigError.exit_status


def probing(data: Dataset, packages: Path, folder: Path, *overrides: str) -> ProbeConfig:
    paths = [f"data.path={data.path}", f"train.output={folder / 'run'}", f"cache={folder / 'cache'}"]
    encoder = f"encoder={packages / 'synthsleepnet'}"
    return load_config(ProbeConfig, config_root() / "downstream/probe-stage-tiny.yaml", [*paths, encoder, *overrides])


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, int]:
    """What is free, in bytes, on the disk of each folder in ``tmp_path``, by its name; there is room for everything on others.

    TMPDIR and SLEEPFM_CACHE are two of these folders.
    """
    sizes: dict[str, int] = {}

    def disk_usage(folder: Path) -> SimpleNamespace:
        inside = Path(folder).is_relative_to(tmp_path) and Path(folder) != tmp_path
        return SimpleNamespace(free=sizes.get(Path(folder).relative_to(tmp_path).parts[0], 10**15) if inside else 10**15)

    monkeypatch.setattr(disks.shutil, "disk_usage", disk_usage)
    for name in ("temporary", "fetched", "cache"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("SLEEPFM_CACHE", str(tmp_path / "fetched"))
    return sizes


def test_every_disk_that_a_node_writes_to_needs_room(
    dataset: Dataset,  # noqa: F811
    packages: Path,
    tmp_path: Path,
    free: dict[str, int],
) -> None:
    config = probing(dataset, packages, tmp_path)
    wanted = disks.Expected({"a" * 64: 1_200_000_000, "b" * 64: 40_000_000}, {"encoder-set-": 80_000_000_000})
    free |= {"temporary": 100_000_000, "cache": 80_000_000_000, "fetched": 1_240_000_000}
    assert disks.faults_of_disks(config, wanted) == []
    free |= {name: size - 10_000_000 for name, size in free.items()}
    temporary, cache, fetched = disks.faults_of_disks(config, wanted)
    assert temporary.text == (
        f"environment variable TMPDIR={tmp_path}/temporary: temporary files take at least 0.10 GB, but only 0.09 GB are free; "
        "make room, or set TMPDIR to another folder"
    )
    assert cache.text == (
        f"cache={tmp_path}/cache: embeddings take 80.00 GB, but only 79.99 GB are free; make room, or give another cache"
    )
    assert fetched.text == (
        f"environment variable SLEEPFM_CACHE={tmp_path}/fetched: models of the registry take 1.24 GB, but only 1.23 GB are free; "
        "make room, or set SLEEPFM_CACHE to another folder"
    )
    assert not (temporary.configured or cache.configured or fetched.configured)
    # What a node has by now takes no more room.
    free |= {"temporary": 10**9}
    (tmp_path / "fetched" / "models" / f"{'b' * 24}-01234567").mkdir(parents=True)
    with (tmp_path / "cache" / "held").open("wb") as file:
        file.truncate(10_000_000)
    (tmp_path / "cache" / "encoder-set-0123").mkdir()
    (tmp_path / "cache" / "held").rename(tmp_path / "cache" / "encoder-set-0123" / "night.safetensors")
    assert disks.faults_of_disks(config, wanted) == []
    # Of what is not known there must be a little.
    free |= {"cache": 90_000_000, "fetched": 90_000_000}
    texts = [fault.text for fault in disks.faults_of_disks(config, disks.Expected({"c" * 64: None}, None))]
    assert [re.search(r"take at least 0\.10 GB, but only 0\.09 GB are free", text) is not None for text in texts] == [True, True]
    # And nothing where nothing is written.
    assert disks.faults_of_disks(pretraining("eeg-base"), disks.Expected({}, None)) == []
    remote = pretraining("eeg-base", "data.path=s3://bucket/shards")
    (shards,) = disks.faults_of_disks(remote, disks.Expected({}, None))
    assert "SLEEPFM_CACHE" in shards.text and "shards take at least" in shards.text


def test_a_folder_that_cannot_be_written_to_is_said(
    dataset: Dataset,  # noqa: F811
    packages: Path,
    tmp_path: Path,
    free: dict[str, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = probing(dataset, packages, tmp_path, f"cache={tmp_path}/cache/below/embeddings")
    monkeypatch.setattr(disks.os, "access", lambda folder, mode: Path(folder) != tmp_path / "cache")
    (fault,) = disks.faults_of_disks(config, disks.Expected({}, {"encoder-set-": 1}))
    assert fault.text == (
        f"cache={tmp_path}/cache/below/embeddings: cannot write embeddings ({tmp_path}/cache is not writable for this user); "
        "or give another cache"
    )
    assert disks.faults_of_disks(config, disks.Expected({}, {"encoder-set-": 0})) == []


def test_disks_without_room_are_in_the_list_of_all_faults(
    dataset: Dataset,  # noqa: F811
    packages: Path,
    tmp_path: Path,
    free: dict[str, int],
) -> None:
    free |= {"temporary": 0, "cache": 1000}
    config = probing(dataset, packages, tmp_path, "registry.metric=val/loss")
    preflight = Preflight(config, ALONE, ALONE, f"sqlite:///{tmp_path}/none.db", "auto", dataset_digest)
    preflight.before_start()
    with pytest.raises(PreflightError, match=r"3 faults") as caught:
        preflight.stage(lambda: pytest.fail("built in spite of its faults"))
    for number, said in enumerate(("registry.metric=val/loss: ", "environment variable TMPDIR=", f"cache={tmp_path}/cache: "), 1):
        assert f"  {number}. {said}" in str(caught.value)


@pytest.mark.parametrize("kind", ["probe", "context", "events on frames"])
def test_what_embeddings_take_is_what_was_counted(
    dataset: Dataset,  # noqa: F811
    packages: Path,
    tmp_path: Path,
    kind: str,
) -> None:
    stage = build(kind, dataset.path, packages, tmp_path)
    config: RunConfig = stage.config  # type: ignore[attr-defined]
    wanted = disks.expected(config, {}, f"sqlite:///{tmp_path}/none.db")
    assert wanted.packages == {} and wanted.embeddings is not None
    ((prefix, size),) = wanted.embeddings.items()
    for cache in stage._caches.values():  # type: ignore[attr-defined]
        assert cache.folder.name.startswith(prefix)
        splits = ("pretrain", "val") if kind == "context" else ("label", "val", "test")
        assert size == sum(kept.nbytes for split in splits for kept in cache.split(split).values())
    # The files have headers.
    assert disks._cached(config, wanted)[0].needed == 0


def test_models_that_are_fetched_are_counted_by_their_parameters(
    dataset: Dataset,  # noqa: F811
    packages: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def look_up(address: str, store: str) -> Entry:
        if address.endswith("/1"):
            return Entry(address, "/seen/by/all", store, "seen", "1", tags={"sha256": "a" * 64, "parameters": "1000"})
        tags = {"sha256": "b" * 64} | ({"parameters": "296000000"} if address.endswith("/2") else {})
        return Entry(address, "mlflow-artifacts:/0/package", store, "fetched", "2", tags=tags)

    def fetch_config(entry: Entry) -> dict[str, object]:
        raise RegistryError("nobody answers")

    monkeypatch.setattr(disks, "look_up", look_up)
    monkeypatch.setattr(disks, "fetch_config", fetch_config)
    for version, found in (("1", {}), ("2", {"b" * 64: 1_184_000_000}), ("3", {"b" * 64: None})):
        config = probing(dataset, packages, tmp_path, f"encoder=models:/model/{version}")
        assert disks.expected(config, {}, "http://host") == disks.Expected(found, None)
    resumed = disks.expected(config, {"models:/model/3": "models:/model/2"}, "http://host")
    assert resumed.packages == {"b" * 64: 1_184_000_000}


@pytest.mark.slow
def test_what_is_written_is_what_was_counted(tmp_path: Path) -> None:
    """The most that a real run of two checkpoints, best and last weights leaves is within what room is asked for."""
    (tmp_path / "toy.yaml").write_text(CONFIG)
    # Large enough that weights count, and not what DeepSpeed writes beside them.
    done = launch(tmp_path, 1, "toy.width=20000", "train.steps=12", "train.ema=0.9", node=True)
    assert done.returncode == 0, done.stderr
    from toy import ToyConfig, ToyModule

    size = Size.of(ToyModule(ToyConfig(width=20000)))
    kept = [file for file in (tmp_path / "run" / "checkpoints").rglob("*") if file.is_file() and file.stat().st_size > 10_000]
    held = sum(file.stat().st_size for file in kept)
    # Two of the three for which there must be room; buffers and DeepSpeed's own records come on top.
    counted = size.bytes_written(1, keep=2, ema=True) - size.bytes_written(1, keep=0, ema=True)
    assert 0.9 < held / counted < 1.2, (held, counted, kept)


def test_each_fault_is_said_once_and_with_its_hosts() -> None:
    everywhere, somewhere = Fault("wrong"), Fault("full", configured=False)
    merged = of_all_ranks([[everywhere], [everywhere], [everywhere, somewhere], [everywhere, somewhere]], ["a", "a", "b", "b"])
    assert [fault.text for fault in merged] == ["wrong", "on b: full"]
    with pytest.raises(PreflightError) as one:
        refuse([somewhere])
    assert (str(one.value), one.value.exit_status) == ("full", 1)
    with pytest.raises(PreflightError) as both:
        refuse(merged)
    assert both.value.exit_status == 2
    refuse([])


def test_interfaces_are_looked_for_as_their_libraries_read_them() -> None:
    for text in ("lo", "=lo", "l", "^nothing", "nothing,lo"):
        found = host.interfaces({"NCCL_SOCKET_IFNAME": text})
        assert len(found) == ("nothing" in text and not text.startswith("^")), text
    (fault,) = host.interfaces({"GLOO_SOCKET_IFNAME": "l"})
    assert "GLOO_SOCKET_IFNAME=l: no interface l that is up; there are" in fault.text and "lo" in fault.text


def test_an_interface_without_its_cable_is_no_fault_of_a_host_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pulled = SimpleNamespace(isup=False)
    monkeypatch.setattr(host.psutil, "net_if_stats", lambda: {"cable": pulled})
    assert len(host.interfaces({"GLOO_SOCKET_IFNAME": "cable"})) == 1
    assert host.interfaces({"GLOO_SOCKET_IFNAME": "cable"}, one_host=True) == []
    (fault,) = host.interfaces({"GLOO_SOCKET_IFNAME": "cabel"}, one_host=True)
    assert "no interface cabel; there are cable" in fault.text


def test_a_host_that_does_not_answer_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as open_, socket.create_server(("127.0.0.1", 0)) as shut:
        ports = [each.getsockname()[1] for each in (open_, shut)]
        shut.close()
        hosts = {"there": ("127.0.0.1", ports[0]), "gone": ("127.0.0.1", ports[1])}
        (fault,) = host.unreachable(hosts)
    assert fault.text.startswith(f"cannot reach gone at 127.0.0.1, port {ports[1]}")


def both(folder: Path, second: dict[str, str], *arguments: str) -> Sequence[tuple[int, str]]:
    """Two processes, each as on a host of its own, the second with more variables; status and what each said."""
    (folder / "toy.yaml").write_text(CONFIG)
    port = free_port()
    jobs = [start(folder, 0, port, *arguments), start(folder, 1, port, *arguments, **second)]
    said = [job.communicate(timeout=300)[1] for job in jobs]
    return [(job.returncode, text) for job, text in zip(jobs, said, strict=True)]


CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>
int clock_gettime(clockid_t id, struct timespec *t) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
  int status = real(id, t);
  if (id == CLOCK_REALTIME) t->tv_sec += 60;
  return status;
}
"""


def test_a_host_with_another_time_and_another_data_set_is_named_with_both(tmp_path: Path) -> None:
    (tmp_path / "clock.c").write_text(CLOCK)
    library = tmp_path / "clock.so"
    compiler = os.environ.get("CC", "cc")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, tmp_path / "clock.c", "-ldl"], check=True)
    for status, said in both(tmp_path, {"LD_PRELOAD": str(library), "TOY_DATA": "another"}):
        assert status == 1 and "2 faults" in said, said
        assert re.search(r"clocks of the hosts differ by (59|60|61)\.\d s, more than 5: .*\(rank 1\) \+", said)
        assert re.search(r"data set: \S+ \(rank 1\) sees [0-9a-f]{12}, the others [0-9a-f]{12}", said)
    assert not (tmp_path / "run").exists() or not (tmp_path / "run" / "run.json").exists()


@pytest.mark.slow
def test_a_run_that_would_be_started_over_is_kept_when_the_new_one_has_faults(tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text(CONFIG)
    assert launch(tmp_path, 1, node=True).returncode == 0
    before = (tmp_path / "run" / "result.json").read_bytes()
    command = [sys.executable, str(TOY), "toy.yaml", "--resume", "never", "train.global_batch=9"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "cannot be divided" in done.stderr
    assert (tmp_path / "run" / "result.json").read_bytes() == before


def test_processes_on_paper_are_for_trying(tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text(CONFIG)
    command = [sys.executable, str(TOY), "toy.yaml", "--processes", "4"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 2 and "only for --dry-run" in done.stderr


def test_finetuning_counts_the_epochs_of_a_sequence() -> None:
    config = load_config(FinetuneConfig, config_root() / "downstream/finetune-stage-base.yaml")
    assert config.rows_per_item() == 20
    assert plan(config, 32) == []
