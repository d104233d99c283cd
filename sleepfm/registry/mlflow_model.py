"""The files that make a package a model of MLflow's own, for ``mlflow.pyfunc.load_model``, ``mlflow models serve`` and others.

They stand beside the package's in a registered version and in an exported folder, and nothing of this project reads them. The
model is one from code: ``night_model.py`` names a class of :mod:`sleepfm.serving`, nothing is pickled. Digests are those of the
package's own files.
"""

from __future__ import annotations

import base64
import importlib.metadata
import json
import platform
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from sleepfm.files import write_atomic
from sleepfm.registry.store import set_defaults
from sleepfm.signals.edf.writer import Channel, write_edf
from sleepfm.version import __version__

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

MLMODEL = "MLmodel"
CODE = "night_model.py"
_REQUIREMENTS, _PYTHON, _CONDA = "requirements.txt", "python_env.yaml", "conda.yaml"
_EXAMPLE, _REQUEST = "input_example.json", "serving_input_example.json"
_VERSION = platform.python_version()
# Columns of the input: a path, or the bytes of a file; and what the file is called, since names tell some cohorts.
RECORDING, EDF, NAME = "recording", "edf", "name"
COHORT = "cohort"
# What `setup.cfg` asks for without an extra: enough to read, model and score.
REQUIRED = (
    *("torch", "numpy", "scipy", "pandas", "scikit-learn", "pydantic", "omegaconf", "pyyaml", "safetensors", "pyarrow", "fsspec"),
    *("universal_pathlib", "defusedxml", "pillow", "jinja2", "tqdm", "psutil", "mne", "mlflow", "shtab"),
)
# The first line of `requirements.txt` where no installer can get this project.
_BESIDE = (
    f"# Install sleepfm {__version__} beside these (pip install FOLDER, or its wheel): it came from a folder, and no index or "
    "repository is known to have it."
)
# Module and class of :mod:`sleepfm.serving` for each kind of model; every other kind is an encoder.
_SCORES, _EMBEDDINGS, _VALUES = (
    ("night_scores", "NightScores"),
    ("night_embeddings", "NightEmbeddings"),
    ("night_values", "NightValues"),
)
_SERVED_BY = {"downstream": _SCORES, "scorer": _SCORES, "recording": _VALUES}
_CODE = '''"""What MLflow runs: the package in this folder, by the installed sleepfm."""

from pathlib import Path

from mlflow.models import set_model

from sleepfm.serving.{module} import {name}

set_model({name}(Path(__file__).parent))
'''


def write_mlflow_files(folder: Path, config: Mapping[str, Any]) -> None:
    """Write into ``folder`` what makes the package whose ``config.yaml`` is ``config`` a model of MLflow's.

    ``mlflow.pyfunc.save_model`` would write the same (a test compares them), but runs the code, and reads the metadata of every
    installed package, which takes seconds in the middle of a training.

    Raises:
        StorageError: it cannot be written.
    """
    set_defaults()
    import mlflow.pyfunc
    from mlflow.models import Model

    module, name = served_by = _SERVED_BY.get(config["model"].get("kind", ""), _EMBEDDINGS)
    needed = requirements()
    model = Model(signature=_signature(served_by), metadata={"sleepfm": __version__})
    model.saved_input_example_info = {
        "artifact_path": _EXAMPLE,
        "type": "dataframe",
        "pandas_orient": "split",
        "serving_input_path": _REQUEST,
    }
    mlflow.pyfunc.add_to_model(
        model,
        loader_module="mlflow.pyfunc.loaders.code_model",
        model_code_path=CODE,
        conda_env=_CONDA,
        python_env=_PYTHON,
    )
    write_atomic(folder / CODE, _CODE.format(module=module, name=name))
    beside = [] if _this_project() else [_BESIDE]
    write_atomic(folder / _REQUIREMENTS, "".join(f"{line}\n" for line in [*beside, *needed]))
    write_atomic(folder / _PYTHON, yaml.safe_dump({"python": _VERSION, "dependencies": [f"-r {_REQUIREMENTS}"]}))
    conda = {"name": "mlflow-env", "channels": ["conda-forge"], "dependencies": [f"python={_VERSION}", "pip", {"pip": needed}]}
    write_atomic(folder / _CONDA, yaml.safe_dump(conda, sort_keys=False))
    example = {"columns": [EDF, NAME], "data": [[base64.b64encode(_example()).decode(), "example.edf"]]}
    write_atomic(folder / _EXAMPLE, json.dumps(example))
    write_atomic(folder / _REQUEST, json.dumps({"dataframe_split": example}))
    model.save(str(folder / MLMODEL))


def requirements() -> list[str]:
    """What the model needs, at the versions that are installed here, and this project where an installer can get it.

    A local version (``+cpu``) is one of an index of its own, and is left out.
    """
    found = [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in REQUIRED]
    return [*found, *_this_project()]


def _this_project() -> list[str]:
    """The requirement that installs this version of this project; none where it lies in a folder of this machine."""
    try:
        found = importlib.metadata.distribution("sleepfm")
    except importlib.metadata.PackageNotFoundError:
        return []
    # In a checkout the folder beside the source comes first, which no installer has put there and which says of no origin.
    if not found.read_text("INSTALLER"):
        return []
    origin = found.read_text("direct_url.json")
    if origin is None:
        return [f"sleepfm=={__version__}"]
    known = json.loads(origin)
    vcs, url = known.get("vcs_info"), known["url"]
    return [f"sleepfm @ {vcs['vcs']}+{url}@{vcs['commit_id']}"] if vcs and not url.startswith("file:") else []


def _signature(served_by: tuple[str, str]) -> ModelSignature:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
    from mlflow.types.schema import AnyType, Array

    inputs: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.string, RECORDING, required=False),
        ColSpec(DataType.binary, EDF, required=False),
        ColSpec(DataType.string, NAME, required=False),
    ]
    outputs: list[ColSpec | TensorSpec] = [ColSpec(DataType.string, "record"), ColSpec(DataType.string, "start", required=False)]
    if served_by == _SCORES:
        outputs += [ColSpec(AnyType(), name, required=False) for name in ("stages", "hypnodensity", "events", "positive_runs")]
        outputs += [ColSpec(AnyType(), name) for name in ("probability", "sleep", "breathing", "models", "not_assessed")]
    else:
        outputs.append(ColSpec(Array(DataType.string), "channels"))
    if served_by == _EMBEDDINGS:
        outputs.append(ColSpec(AnyType(), "embedding"))
    if served_by == _VALUES:
        outputs += [ColSpec(DataType.string, "task"), ColSpec(AnyType(), "value", required=False)]
        outputs += [ColSpec(DataType.string, "unit"), ColSpec(AnyType(), "probability", required=False)]
    outputs.append(ColSpec(Array(DataType.string), "warnings"))
    return ModelSignature(Schema(inputs), Schema(outputs), ParamSchema([ParamSpec(COHORT, DataType.string, "auto")]))


@cache
def _example() -> bytes:
    """A recording of one epoch with a signal of every modality: noise, which is enough to try the model on."""
    seconds, random = 30, np.random.default_rng(0)
    waves = [("C3-M2", "uV", 30.0), ("C4-M1", "uV", 30.0), ("E1-M2", "uV", 40.0), ("E2-M1", "uV", 40.0)]
    waves += [("Chin1-Chin2", "uV", 15.0), ("ECG", "mV", 0.3)]
    channels, signals = [], []
    for label, unit, size in waves:
        channels.append(Channel(label, unit, 100, f"-{8 * size:g}", f"{8 * size:g}", -32768, 32767))
        signals.append(random.normal(0, size, seconds * 100).astype(np.float32))
    for label in ("Airflow", "Thorax", "Abdomen"):
        channels.append(Channel(label, "", 10, "-1", "1", -32768, 32767))
        signals.append((0.3 * np.sin(2 * np.pi * np.arange(seconds * 10) / 40)).astype(np.float32))
    channels.append(Channel("SpO2", "%", 1, "0", "100", 0, 32767))
    signals.append(np.full(seconds, 96.0, np.float32))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "example.edf"
        write_edf(path, channels, signals, seconds, "22.00.00")
        return path.read_bytes()
