"""The graph from shards to models."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from sleepfm.data.identity import DataDigest, Part
from sleepfm.registry.store import client
from sleepfm.reports.lineage import Lineage, from_registry, to_svg

TAGS = {"sha256": "a" * 64, "git_commit": "c" * 40}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = f"sqlite:///{tmp_path_factory.mktemp('lineage')}/mlflow.db"
    client(uri, create=True)
    return uri


def add(store: str, name: str, data: str, *parents: str) -> tuple[str, str]:
    mlflow_client = client(store)
    mlflow_client.create_registered_model(name)
    listed = "[" + ", ".join(f'"{parent}"' for parent in parents) + "]"
    tags = TAGS | {"dataset_digest": data * 64, "parents": listed}
    return name, str(mlflow_client.create_model_version(name, source="file:///nowhere", tags=tags).version)


def edges(graph: Lineage) -> set[tuple[str, str]]:
    short = {node.key: node.key[0] if node.kind == "data" else node.key for node in graph.nodes}
    return {(short[a], short[b]) for a, b in graph.edges}


def test_every_data_set_is_drawn_where_it_was_used(store: str) -> None:
    add(store, "eeg", "1")
    add(store, "fused", "1", "eeg:1")
    same, other = add(store, "sleepfm-stage", "1", "fused:1"), add(store, "sleepfm-apnea", "2", "fused:1")
    chain = {("1", "eeg:1"), ("eeg:1", "fused:1"), ("fused:1", "sleepfm-stage:1"), ("fused:1", "sleepfm-apnea:1")}
    graph = from_registry([same, other], store)
    assert edges(graph) == chain | {("2", "sleepfm-apnea:1")}
    assert {node.key: node.kind for node in graph.nodes}["sleepfm-apnea:1"] == "downstream"
    assert to_svg(graph).count("<rect") == 6


def test_a_folder_and_a_version_that_is_gone_are_drawn_too(store: str, tmp_path: Path) -> None:
    package = tmp_path / "converted"
    package.mkdir()
    content = {"model": {}, "weights": {"sha256": "b" * 64}, "training": {"dataset_digest": "3" * 64, "parents": []}}
    (package / "config.yaml").write_text(yaml.safe_dump(content))
    graph = from_registry([add(store, "sleepfm-hypopnea", "4", str(package), "gone:7")], store)
    head = "sleepfm-hypopnea:1"
    assert edges(graph) == {("3", f"{package}:"), (f"{package}:", head), ("gone:7", head), ("4", head)}
    assert "converted" in to_svg(graph) and "nothing known of it" in to_svg(graph)


def test_a_mixture_is_drawn_with_its_data_sets(store: str, tmp_path: Path) -> None:
    data = DataDigest([Part("shhs", "5" * 64, weight=2), Part("mesa", "6" * 64, weight=1)])
    package = tmp_path / "mixed"
    package.mkdir()
    training = {"dataset_digest": str(data), **data.to_record(), "parents": []}
    (package / "config.yaml").write_text(yaml.safe_dump({"model": {}, "weights": {"sha256": "b" * 64}, "training": training}))
    graph = from_registry([add(store, "sleepfm-scorer", "7", str(package))], store)
    (mixture,) = (node for node in graph.nodes if node.title == "mixture")
    assert (mixture.key, mixture.lines) == (str(data), ("mesa 666666666666", "shhs 555555555555"))
