"""A build whose source is a bucket: the same bytes as from a folder."""

from __future__ import annotations

import hashlib
import json
import shutil


def test_a_source_by_url_gives_the_bytes_that_a_folder_gives(s3, cohort, tmp_path, shards_command):
    local = tmp_path / "source"
    local.mkdir()
    for path in sorted(cohort.rglob("shhs1-20000[12]*")):
        place = local / path.relative_to(cohort)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    (local / "polysomnography" / "edfs" / "shhs1" / "notes.edf").write_bytes(b"no recording" * 60)
    url = s3.upload(local, "cohort")
    for source, out in ((url, tmp_path / "remote"), (local, tmp_path / "local")):
        result = shards_command(["build", source, out, "--cohort", "shhs1", "--workers", "1"])
        assert result.returncode == 1 and "1 recordings refused" in result.stdout, result.stdout + result.stderr
    assert _content(tmp_path / "remote") == _content(tmp_path / "local")
    assert shards_command(["verify", tmp_path / "remote"]).returncode == 0
    again = shards_command(["build", f"{url}/", tmp_path / "remote", "--cohort", "shhs1", "--workers", "1"])
    assert again.returncode == 1 and "starting Ray" not in again.stdout
    description = json.loads((tmp_path / "remote" / "dataset.json").read_text())
    assert description["counts"]["records"] == 2


def _content(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }
