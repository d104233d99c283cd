"""The real recordings beside the checkout, through a real build."""

from __future__ import annotations

import re
import shutil

import pyarrow.parquet as pq

from sleepfm.signals.prepare import discover

# What a reason tells a person to do, or where to look.
ACTIONABLE = re.compile(
    r"fetch|export|convert|name (them|one)|put it|keep one|split|annotations and no signal|shorter than|"
    r"damaged|no canonical channel|no usable signal|is missing|is ambiguous"
)


def test_every_file_of_the_zoo_is_converted_or_refused_with_a_reason(shared_data, tmp_path, run):
    source, out = tmp_path / "zoo", tmp_path / "out"
    shutil.copytree(shared_data / "edf-zoo", source)
    result = run(["build", source, out, "require=[]"])
    assert result.returncode in (0, 1) and "Traceback" not in result.stderr, result.stderr
    converted = set(pq.read_table(out / "manifest/records.parquet")["source"].to_pylist())
    refused = {row["source"]: row["reason"] for row in pq.read_table(out / "manifest/quarantine.parquet").to_pylist()}
    found = {path.relative_to(source).as_posix() for path in discover(source)}
    assert converted | set(refused) == found and not converted & set(refused)
    files = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.suffix.lower() in (".edf", ".bdf")}
    assert found == files
    for path, reason in refused.items():
        assert ACTIONABLE.search(reason), f"{path}: {reason}"
        assert str(tmp_path) not in reason
    assert "whole" in run(["verify", out]).stdout
