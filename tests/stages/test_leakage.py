"""A model is not judged by people whom it or an ancestor has seen: planted leaks are refused, or marked where that is allowed."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import yaml

from shards.build import build
from shards.build_config import BuildConfig
from shards.split import split_of
from sleepfm.config import load_config, read_yaml
from sleepfm.constants import SPLITS
from sleepfm.data.dataset import Dataset
from sleepfm.errors import LeakageError
from sleepfm.models.build import build_model, model_config
from sleepfm.paths import config_root
from sleepfm.registry.package import write_package
from sleepfm.registry.people import PeopleOfStage, Seen, TestPeople
from sleepfm.registry.registry import Resolved, load_package
from sleepfm.stages.context import ContextStage
from sleepfm.stages.downstream_config import FinetuneConfig, ProbeConfig
from sleepfm.stages.encoders import MultimodalStage, UnimodalStage
from sleepfm.stages.finetune import FinetuneStage
from sleepfm.stages.people import people_of_downstream, people_of_pretraining
from sleepfm.stages.pretrain import PretrainConfig
from sleepfm.stages.probe import ProbeStage
from sleepfm.stages.run_results import read_results
from sleepfm.synthetic.cohort import write_cohort
from sleepfm.training.folder import RunFolder
from sleepfm.training.ranks.shared_work import ALONE
from sleepfm.training.seen_people import keep_people, leak_of, of_export, tags_of

PRETRAINED = {"pretrain": "pretraining", "val": "selection", "label": "selection"}


def built(source, out, salt=None):
    chosen = [f"split.salt={salt}"] if salt else []
    build(source, out, load_config(BuildConfig, config_root() / "shards.yaml", ["recordings_per_shard=3", *chosen]), workers=1)
    return Dataset.open(out)


def people(dataset, split):
    return {row.subject for row in dataset.records if row.split == split}


@pytest.fixture(scope="module")
def other_salt(dataset):
    """A salt by which every split has somebody, and ``test`` somebody who was in ``val``, and nobody of the former ``test``."""
    plain = load_config(BuildConfig, config_root() / "shards.yaml", []).split
    for number in range(10_000):
        config = plain.model_copy(update={"salt": f"leak-{number}"})
        found = {subject: split_of(subject, config) for subject in set(dataset.subjects)}
        test = {subject for subject, split in found.items() if split == "test"}
        if set(found.values()) == set(SPLITS) and test & people(dataset, "val") and not test & people(dataset, "test"):
            return config.salt
    raise AssertionError("no such salt")


@pytest.fixture(scope="module")
def resplit(recordings, other_salt, tmp_path_factory):
    """The same nights, split anew."""
    return built(recordings[0].parents[3], tmp_path_factory.mktemp("resplit"), other_salt)


@pytest.fixture(scope="module")
def later_visit(other_salt, tmp_path_factory):
    """The second visit of the same people, split anew."""
    folder = tmp_path_factory.mktemp("visit2")
    nights = write_cohort(folder / "cohort", subjects=8, hours=0.25, seed=9, cohort="shhs2")
    return built(nights[0].parents[3], folder / "shards", other_salt)


@pytest.fixture
def packaged(tmp_path):
    """Makes a package of an untrained encoder that says whom it has seen; None says nothing."""

    def make(seen, name="encoder"):
        encoder = build_model(read_yaml(config_root() / "models" / "synthsleepnet-tiny.yaml")["model"])
        config = {"model": model_config(encoder)}
        if seen is not None:
            config |= {"training": {"dataset_digest": "d", "people": seen.to_plain()}}
        write_package(tmp_path / name, encoder, config, "card")
        return Resolved(str(tmp_path / name), tmp_path / name)

    return make


def job(schema, name, dataset, tmp_path, *overrides):
    fixed = [f"data.path={dataset.path}", f"train.output={tmp_path / 'run'}"]
    fixed += [f"cache={tmp_path / 'cache'}"] if schema is ProbeConfig else []
    return load_config(schema, config_root() / "downstream" / f"{name}.yaml", [*fixed, *overrides])


def test_another_salt_that_makes_a_validation_person_a_test_person_is_refused(dataset, resplit, packaged, tmp_path):
    source = packaged(Seen.of([dataset], PRETRAINED))
    leaked = people(resplit, "test") - people(dataset, "test")
    with pytest.raises(LeakageError) as refused:
        ProbeStage(job(ProbeConfig, "probe-stage-tiny", resplit, tmp_path), source, ALONE)
    assert all(subject in str(refused.value) for subject in sorted(leaked)[:3]) and "selection" in str(refused.value)
    assert "--allow-leakage" in str(refused.value) and "split.salt" in str(refused.value)
    assert not (tmp_path / "cache").exists()
    with pytest.raises(LeakageError):
        FinetuneStage(job(FinetuneConfig, "finetune-stage-tiny", resplit, tmp_path), source)
    same = FinetuneStage(job(FinetuneConfig, "finetune-stage-tiny", dataset, tmp_path), source).people.verdict
    assert same.startswith(f"none: of the {len(people(dataset, 'test'))} people of test nobody")


def test_an_allowed_leak_marks_what_is_reported(dataset, resplit, packaged, tmp_path):
    config = job(ProbeConfig, "probe-stage-tiny", resplit, tmp_path, "evaluate.allow_leakage=true", "evaluate.resamples=20")
    source = packaged(Seen.of([dataset], PRETRAINED))
    stage = ProbeStage(config, source, ALONE)
    stage.module.eval()
    export = stage.export(stage.module, tmp_path)
    facts, _ = read_results(tmp_path)
    assert facts["test people seen before"].startswith("LEAK, allowed: ") and facts["test people seen before"] in export.card
    assert export.config["facts"] == facts
    assert leak_of(stage) == {"people.leak": facts["test people seen before"]}
    same = ProbeStage(job(ProbeConfig, "probe-stage-tiny", dataset, tmp_path / "same"), source, ALONE)
    assert leak_of(same) == {}


def test_another_visit_of_a_person_is_the_same_person(dataset, later_visit, packaged, tmp_path):
    assert {row.cohort for row in later_visit.records} == {"shhs2"} and set(later_visit.subjects) == set(dataset.subjects)
    assert not set(later_visit.names) & set(dataset.names)
    with pytest.raises(LeakageError, match="were seen before"):
        FinetuneStage(job(FinetuneConfig, "finetune-stage-tiny", later_visit, tmp_path), packaged(Seen.of([dataset], PRETRAINED)))


def pretraining(dataset, *overrides):
    fixed = [f"data.path={dataset.path}", "train.output=run"]
    return load_config(PretrainConfig, config_root() / "pretrain" / "eeg-tiny.yaml", [*fixed, *overrides])


def test_every_ancestor_counts_also_one_trained_on_a_mixture(dataset, resplit, packaged, tmp_path):
    """Grandparents saw one data set, a parent two: its own package tells of all."""
    quiet = ("monitor=none", "registry.metric=val/loss", "registry.mode=min")
    alone = people_of_pretraining(pretraining(dataset, *quiet), [dataset])
    # Without the monitor nobody of `label` has been seen.
    assert not alone.seen.people.keys() - {("pretraining", "keep"), ("selection", "keep")}
    of_label = Seen.of([dataset], {"label": "x"}).people["x", "keep"]
    assert not any(of_label & seen for seen in alone.seen.people.values())
    monitored = people_of_pretraining(pretraining(dataset), [dataset]).seen
    assert of_label <= monitored.people["selection", "keep"]
    mixed = people_of_pretraining(pretraining(resplit, *quiet), [resplit, dataset], [load_package(packaged(alone.seen, "first"))])
    grandchild = packaged(mixed.seen, "second")
    for judged in (dataset, resplit):
        config = job(ProbeConfig, "probe-stage-tiny", judged, tmp_path)
        with pytest.raises(LeakageError, match=r"were seen before: .* in (pretraining|selection)"):
            people_of_downstream(config, [judged], load_package(grandchild))
    clean = packaged(people_of_pretraining(pretraining(dataset), [dataset]).seen, "third")
    assert people_of_downstream(job(ProbeConfig, "probe-stage-tiny", dataset, tmp_path), [dataset], load_package(clean))


def test_what_is_not_known_is_said_and_no_reason_to_refuse(dataset, resplit, packaged, tmp_path, capsys):
    """A converted checkpoint, and a package of an earlier version, do not say whom they have seen."""
    converted = packaged(None)
    stage = FinetuneStage(job(FinetuneConfig, "finetune-stage-tiny", resplit, tmp_path), converted)
    assert stage.people.verdict.startswith("unknown: it cannot be told whom") and str(converted.path) in stage.people.verdict
    folder = RunFolder(tmp_path / "run")
    folder.root.mkdir()
    keep_people(stage, stage.config, folder, None)
    assert "unknown: it cannot be told" in capsys.readouterr().err
    assert of_export(folder)["people"]["unknown"] == list(stage.people.seen.unknown) and tags_of(folder)["people.unknown"]
    # What else is known still refuses, and a child of an unknown model is unknown too.
    both = Seen.of([dataset], PRETRAINED) | Seen.of_package({}, "converted")
    child = Seen.of_package({"training": {"people": both.to_plain()}}, "child")
    assert child == both and "converted" in child.unknown[0]
    with pytest.raises(LeakageError):
        PeopleOfStage(child, TestPeople([resplit]))
    for damaged in ({"seen": [{"role": "training", "keys": "keep", "digests": "AAA="}], "unknown": []}, {"seen": 3}, "people"):
        assert "damaged" in Seen.of_package({"training": {"people": damaged}}, "p").unknown[0]


def test_relatives_and_keys_that_cannot_be_compared(dataset):
    train, test = sorted(people(dataset, "pretrain"))[0], sorted(people(dataset, "test"))[0]
    family = copy.copy(dataset)
    family.people = SimpleNamespace(families={train: "family-7", test: "family-7"})
    seen = Seen.of([family], PRETRAINED)
    with pytest.raises(LeakageError, match=f"{test} in pretraining"):
        TestPeople([family]).verdict(seen)
    assert TestPeople([dataset]).verdict(Seen.of([dataset], PRETRAINED)).startswith("none")
    # Keys as digests of another salt say nothing about one another.
    hidden = copy.copy(dataset)
    hidden.config = dataset.config | {"privacy": {"names": "digest", "salt": "s"}}
    verdict = TestPeople([hidden]).verdict(Seen.of([dataset], {"test": "training"}))
    assert verdict.startswith("unknown") and "privacy.salt" in verdict


class Known:
    """A stage, as far as whom it has seen matters."""

    def __init__(self, seen, test=None):
        self.people = PeopleOfStage(seen, test)


def test_weights_and_branches_that_a_run_starts_from_bring_their_people(dataset, resplit, packaged, tmp_path):
    """``init_from`` of a package and of a run, and ``branch_from``; the record of the run grows and is told to its packages."""
    seen, nobody = Seen.of([dataset], PRETRAINED), Seen()
    source = packaged(seen)
    before = RunFolder(tmp_path / "before")
    before.root.mkdir()
    config = pretraining(dataset)
    keep_people(Known(seen), config, before, None)
    (tmp_path / "before" / "best").mkdir()
    starts = {
        "package": ({"init_from": source.uri}, source.path / "model.safetensors"),
        "run": ({"init_from": str(before.root)}, before.best),
        "branch": ({"branch_from": f"{before.root}@3"}, None),
    }
    for name, (update, weights) in starts.items():
        folder = RunFolder(tmp_path / name)
        folder.root.mkdir()
        started = config.model_copy(update=update)
        keep_people(Known(nobody), started, folder, weights)
        assert Seen.from_plain(of_export(folder)["people"], "it") == seen, name
        assert yaml.safe_load(yaml.safe_dump(of_export(folder))) == of_export(folder)
        with pytest.raises(LeakageError):
            keep_people(Known(nobody, TestPeople([resplit])), started, folder, weights)
        # The run goes on, and still has seen them.
        again = Known(nobody)
        keep_people(again, config, folder, None)
        assert again.people.seen == seen
        assert tags_of(folder)["people"] == str(len({row.subject for row in dataset.records if row.split != "test"}))
    gone = Known(nobody)
    folder = RunFolder(tmp_path / "gone")
    folder.root.mkdir()
    keep_people(gone, config.model_copy(update={"branch_from": f"{tmp_path / 'nowhere'}@3"}), folder, None)
    assert "an earlier run" in gone.people.seen.unknown[0]


def test_pretraining_stages_know_whom_they_and_their_encoders_have_seen(dataset, resplit, packaged, tmp_path):
    own = Seen.of([dataset], PRETRAINED)
    assert UnimodalStage(pretraining(dataset)).people.seen == own
    sources = {}
    for modality in ("EEG", "EOG", "EMG", "ECG"):
        module = build_model(read_yaml(config_root() / "pretrain" / f"{modality.lower()}-tiny.yaml")["model"])
        config = {"model": model_config(module)}
        if modality == "EOG":
            config |= {"training": {"people": Seen.of([resplit], {"pretrain": "pretraining"}).to_plain()}}
        write_package(tmp_path / modality, module, config, "card")
        sources[modality] = Resolved(str(tmp_path / modality), tmp_path / modality)
    fixed = [f"data.path={dataset.path}", "train.output=run", *(f"encoders.{m}={s.uri}" for m, s in sources.items())]
    config = load_config(PretrainConfig, config_root() / "pretrain" / "multimodal-tiny.yaml", fixed)
    stage = MultimodalStage(config, sources)
    assert stage.people.seen.people == (own | Seen.of([resplit], {"pretrain": "pretraining"})).people
    assert len(stage.people.seen.unknown) == 3 and stage.parents == [source.label for source in sources.values()]
    encoder = packaged(stage.people.seen)
    fixed = [f"data.path={dataset.path}", "train.output=run", f"encoder={encoder.uri}"]
    config = load_config(PretrainConfig, config_root() / "pretrain" / "context-tiny.yaml", fixed)
    context = ContextStage(config, load_package(encoder), ALONE, on_paper=True)
    assert context.people.seen == stage.people.seen and context.people.verdict == ""
