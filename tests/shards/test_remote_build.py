"""A build whose source is a bucket, on a cluster of its own: the same bytes, and tasks that read the URL themselves."""

from __future__ import annotations


def test_one_worker_that_reads_a_url_gives_the_bytes_of_two_that_read_a_folder(s3, cohort, built, tmp_path, start, digests):
    place = "one-worker/cohort"
    url = s3.upload(cohort, place)
    out = tmp_path / "out"
    process = start(["build", url, out, "--workers", 1, "--cohort", "shhs1", "recordings_per_shard=2"], None)
    stdout, stderr = process.communicate(timeout=300)
    assert (process.returncode, stderr) == (0, ""), stdout + stderr
    assert digests(out) == digests(built)
    assert "6/6" in stdout and "ETA" in stdout
    edfs = sorted(cohort.rglob("*.edf"))
    assert len(edfs) == 6
    for edf in edfs:
        # From listing the bucket to the samples: two requests for the header, and each range of 4 MiB once.
        assert s3.gets(f"{place}/{edf.relative_to(cohort).as_posix()}") == 2 + -(-edf.stat().st_size // (1 << 22))
