"""Which version the alias ``champion`` means."""

from __future__ import annotations

import argparse
import itertools
import math
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sleepfm.commands.models import configure
from sleepfm.errors import RegistryError
from sleepfm.registry.promotion import Promotion, comparison, promote, promote_by_hand
from sleepfm.registry.store import client

METRIC = "val/kappa"
TINY = {"kind": "neuronet", "encoder": {"dim": 16, "heads": 2}}
BASE = {"kind": "neuronet", "encoder": {"dim": 768, "heads": 8}}
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = f"sqlite:///{tmp_path_factory.mktemp('promotion')}/mlflow.db"
    client(uri, create=True)
    return uri


@pytest.fixture
def name(store: str) -> str:
    return new_name(store)


def new_name(store: str) -> str:
    name = f"model-{next(NUMBERS)}"
    client(store).create_registered_model(name)
    return name


def version(
    store: str,
    name: str,
    value: float | None,
    model: dict | None = None,
    data: str = "d1",
    task: str = "pretrain-eeg",
    measure: dict | None = None,
) -> str:
    """A new version with the tags that a training job gives it; None is one without the figure."""
    tags = comparison(task, model or TINY, measure or {"metric": METRIC}, 41_000) | {"dataset_digest": data}
    tags |= {} if value is None else {f"metric.{METRIC}": repr(value)}
    return str(client(store).create_model_version(name, source="file:///nowhere", tags=tags).version)


def offer(store: str, name: str, value: float, mode: str = "max", **kind: object) -> Promotion:
    return promote(name, version(store, name, value, **kind), METRIC, mode, store=store)  # type: ignore[arg-type]


def holder(store: str, name: str, alias: str = "champion") -> str:
    return str(client(store).get_model_version_by_alias(name, alias).version)


def test_the_champion_moves_only_when_the_metric_improves(store: str, name: str) -> None:
    outcomes = [offer(store, name, value).promoted for value in (0.5, 0.4, 0.5, math.nan, 0.6)]
    assert outcomes == [True, False, False, False, True]
    assert holder(store, name) == "5"
    with pytest.raises(RegistryError, match=r"no metric 'val/f1'"):
        promote(name, "1", "val/f1", store=store)


def test_for_an_error_lower_is_better(store: str, name: str) -> None:
    for value in (0.5, 0.6, 0.4):
        offer(store, name, value, "min")
    assert holder(store, name) == "3"


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ({"model": BASE}, "another architecture or size"),
        ({"data": "d2"}, r"figures of another data set \(d1, this one d2\)"),
        ({"task": "pretrain-eog"}, r"another task \(pretrain-eeg, this one pretrain-eog\)"),
        ({"measure": {"metric": METRIC, "label_epochs": 10}}, "another draw from val"),
    ],
)
def test_a_version_of_another_kind_gets_an_alias_of_its_own_and_says_why(store: str, name: str, kind: dict, said: str) -> None:
    offer(store, name, 0.5)
    better = offer(store, name, 0.9, **kind)
    assert not better.promoted and holder(store, name) == "1"
    assert better.alias.startswith("champion-") and holder(store, name, better.alias) == "2"
    assert re.search(said, better.note) and f"sleepfm models promote {name} 2" in better.note
    worse, best = offer(store, name, 0.8, **kind), offer(store, name, 0.95, **kind)
    assert (worse.promoted, worse.alias) == (False, "")
    assert best.alias == better.alias and holder(store, name, better.alias) == "4"
    assert holder(store, name) == "1"
    assert offer(store, name, 0.6).promoted


def test_heads_on_one_encoder_compete_and_models_that_find_events_are_a_kind_of_their_own(store: str, name: str) -> None:
    model = {"kind": "downstream", "task": "apnea", "classes": ["no", "yes"], "encoder": TINY, "events": None, "context": "none"}
    assert offer(store, name, 0.5, model=model).promoted
    assert offer(store, name, 0.6, model=model | {"context": "mamba"}).promoted
    assert not offer(store, name, 0.7, model=model | {"events": {"hidden": 8}}).promoted
    assert not offer(store, name, 0.7, model=model | {"encoder": BASE}).promoted


def test_a_holder_without_the_metric_is_replaced_and_said(store: str, name: str) -> None:
    client(store).set_registered_model_alias(name, "champion", version(store, name, None, measure={"metric": "val/loss"}))
    outcome = offer(store, name, 0.1)
    assert outcome.promoted and f"{name}:1, champion until now, has no val/kappa" in outcome.note


def test_what_a_person_chose_yields_to_later_versions_alone(store: str, name: str) -> None:
    for value in (0.5, 0.7, 0.9):
        offer(store, name, value)
    assert promote_by_hand(f"models:/{name}/1", store=store) == (f"{name}:1", f"{name}:3")
    assert not promote(name, "3", METRIC, store=store).promoted
    assert not offer(store, name, 0.4).promoted
    assert holder(store, name) == "1"
    assert offer(store, name, 0.6).promoted
    with pytest.raises(RegistryError, match="no version 77"):
        promote_by_hand(f"models:/{name}/77", store=store)


def test_another_kind_is_promoted_by_hand_and_competes_with_its_own_from_then_on(store: str, name: str) -> None:
    offer(store, name, 0.9)
    offer(store, name, 0.3, model=BASE)
    parser = argparse.ArgumentParser()
    configure(parser)
    arguments = parser.parse_args(["--store", store, "promote", name, "2"])
    assert arguments.run(arguments) == 0
    assert holder(store, name) == "2"
    assert offer(store, name, 0.4, model=BASE).promoted
    assert not offer(store, name, 0.95).promoted


@settings(max_examples=6, deadline=None)
@given(values=st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4]), min_size=2, max_size=4), lower=st.booleans())
def test_jobs_that_promote_at_once_leave_the_best_whatever_their_order(store: str, values: list[float], lower: bool) -> None:
    name = new_name(store)
    mode = "min" if lower else "max"
    barrier = threading.Barrier(len(values))

    def job(number: str) -> None:
        barrier.wait()
        promote(name, number, METRIC, mode, store=store)

    numbers = [version(store, name, value) for value in values]
    with ThreadPoolExecutor(len(values)) as pool:
        list(pool.map(job, numbers))
    found = client(store).get_model_version_by_alias(name, "champion")
    assert float(found.tags[f"metric.{METRIC}"]) == (min if lower else max)(values)
