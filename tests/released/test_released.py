"""A data set and models of every release are read by today's code, and give what they gave then."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from release import answers

RELEASES = sorted(path.parent for path in Path(__file__).parent.glob("*/expected.npz"))
# Counts, draws and samples are exact on every processor; sums of products are not.
ROUNDED = ("embedding", "hypnodensity", "apnea")


def test_there_is_a_release() -> None:
    assert RELEASES


@pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.name)
def test_what_a_release_stored_gives_the_same(release: Path, tmp_path: Path) -> None:
    copy = tmp_path / release.name
    shutil.copytree(release, copy)
    found = answers(copy)
    with np.load(release / "expected.npz") as expected:
        assert set(found) == set(expected)
        for name in expected:
            if name in ROUNDED:
                np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, atol=1e-5, err_msg=name)
            else:
                np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
