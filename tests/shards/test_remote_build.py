"""A build whose source is a bucket: the same bytes as from a folder, and tasks that read the URL themselves."""

from __future__ import annotations


def test_a_source_by_url_gives_the_bytes_that_a_folder_gives(s3, cohort, built, tmp_path, start, digests):
    url = s3.upload(cohort, "cohort")
    out = tmp_path / "out"
    process = start(["build", url, out, "--workers", 1, "--cohort", "shhs1", "recordings=2"], None)
    stdout, stderr = process.communicate(timeout=300)
    assert (process.returncode, stderr) == (0, ""), stdout + stderr
    assert digests(out) == digests(built)
