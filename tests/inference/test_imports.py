"""What scoring a night does not wait for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from sleepfm.files import sha256_file
from sleepfm.registry import registry
from sleepfm.registry.package import CONFIG, WEIGHTS
from sleepfm.registry.promotion import CHAMPION
from sleepfm.registry.store import client, experiment_id

ROOT = Path(__file__).parents[2]
# Each takes from one to four seconds to import.
SLOW = ("deepspeed", "matplotlib", "mlflow", "mne", "ray", "scipy.signal", "scipy.stats", "sqlalchemy")


def test_a_champion_of_a_sqlite_store_scores_a_night_without_slow_imports(recordings, downstream_packages, tmp_path):
    package, store = downstream_packages["stage"], f"sqlite:///{tmp_path / 'mlflow.db'}"
    mlflow = client(store, create=True)
    made = mlflow.create_run(experiment_id(mlflow, store, "test"))
    digests = {"sha256": sha256_file(package / WEIGHTS), "sha256.config": sha256_file(package / CONFIG)}
    version = registry.register("sleepfm-stage", package, made.info.run_id, digests, {}, store=store)
    registry.name_version("sleepfm-stage", version, CHAMPION, store)
    # Without its human scoring, with which agreement figures come.
    night = tmp_path / recordings[0].name
    night.write_bytes(recordings[0].read_bytes())
    call = ["score", str(night), "--model", f"models:/sleepfm-stage@{CHAMPION}", "--store", store, "--out", str(tmp_path / "out")]
    program = (
        f"import sys; from sleepfm.cli import main; status = main({call!r}); "
        f"print(status, [name for name in {SLOW} if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "0 []", done.stdout
    assert list((tmp_path / "out").glob("*/report.html"))
