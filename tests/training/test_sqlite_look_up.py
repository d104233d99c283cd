"""A version that is read from MLflow's tables is the version that MLflow says."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from sleepfm import builtin
from sleepfm.errors import RegistryError
from sleepfm.inference.default_models import CHAMPIONS, default_models
from sleepfm.registry import registry
from sleepfm.registry.sqlite_look_up import KNOWN_LAYOUTS, lacks_alias, stored_version
from sleepfm.registry.store import client, experiment_id


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two versions of a model, with tags and aliases, and one version that was removed."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow 1.db'}"
    mlflow = client(uri, create=True)
    run = mlflow.create_run(experiment_id(mlflow, uri, "test")).info.run_id
    mlflow.create_registered_model("sleepfm-stage")
    for number in range(3):
        mlflow.create_model_version(
            "sleepfm-stage", source=f"/models/{number}", run_id=run, tags={"sha256": f"{number}", "note": "é"}
        )
    mlflow.delete_model_version("sleepfm-stage", "3")
    mlflow.set_registered_model_alias("sleepfm-stage", "champion", "2")
    return uri


@pytest.mark.parametrize(("alias", "number"), [("champion", None), (None, "1"), (None, "2")])
def test_it_is_what_mlflow_says(store: str, alias: str | None, number: str | None) -> None:
    mlflow = client(store)
    said = (
        mlflow.get_model_version_by_alias("sleepfm-stage", alias) if alias else mlflow.get_model_version("sleepfm-stage", number)
    )
    found = stored_version("sleepfm-stage", alias, number, store)
    assert found is not None
    assert (found.name, found.version) == (said.name, str(said.version))
    assert (found.source, found.run_id, found.tags) == (said.source, said.run_id, said.tags)
    entry = registry.look_up(f"models:/sleepfm-stage{f'@{alias}' if alias else f'/{number}'}", store)
    assert (entry.uri, entry.source) == (f"models:/sleepfm-stage/{said.version}", said.source) and entry.tags == said.tags


def test_that_no_scorer_is_champion_is_known_without_mlflow(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "client", lambda *_: pytest.fail("MLflow was asked"))
    monkeypatch.setattr(builtin, "is_there", lambda: False)
    assert default_models(store)[0] == tuple(CHAMPIONS.values())
    assert lacks_alias("sleepfm-stage", "last", store) and lacks_alias("sleepfm-scorer", "champion", store)
    assert not lacks_alias("sleepfm-stage", "champion", store)
    # Nobody knows what a store holds that is not read here.
    for other in ("http://localhost:1", f"sqlite:///{tmp_path / 'none.db'}"):
        assert not lacks_alias("sleepfm-scorer", "champion", other)


def test_what_is_not_plainly_there_is_left_to_mlflow(store: str, tmp_path: Path) -> None:
    for alias, number in (("gone", None), (None, "3"), (None, "9" * 30), (None, None)):
        assert stored_version("sleepfm-stage", alias, number, store) is None
    assert stored_version("sleepfm-apnea", "champion", None, store) is None
    for other in ("http://localhost:1", f"sqlite:///{tmp_path / 'none.db'}", f"sqlite:///{tmp_path}"):
        assert stored_version("sleepfm-stage", "champion", None, other) is None
    assert not list(tmp_path.iterdir())
    (tmp_path / "text.db").write_text("no tables here, but some text that is long enough to be read as a header of one")
    assert stored_version("sleepfm-stage", "champion", None, f"sqlite:///{tmp_path / 'text.db'}") is None
    with pytest.raises(RegistryError, match="no alias 'gone'"):
        registry.look_up("models:/sleepfm-stage@gone", store)


def test_another_layout_of_the_tables_is_not_read(store: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    with sqlite3.connect(store.removeprefix("sqlite:///")) as tables, sqlite3.connect(copy) as other:
        tables.backup(other)
        (layout,) = [row[0] for row in other.execute("SELECT version_num FROM alembic_version")]
        assert layout in KNOWN_LAYOUTS, (
            "a new MLflow: look at its tables, and add this layout if those that are read are the same"
        )
        assert stored_version("sleepfm-stage", "champion", None, f"sqlite:///{copy}") is not None
        other.execute("UPDATE alembic_version SET version_num = 'another'")
    assert not lacks_alias("sleepfm-scorer", "champion", f"sqlite:///{copy}")
    assert stored_version("sleepfm-stage", "champion", None, f"sqlite:///{copy}") is None
