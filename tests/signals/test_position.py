"""The position of the body: by the user's codes alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sleepfm.errors import MontageError, UsageError
from sleepfm.signals.position import parse_position, read_position
from sleepfm.signals.recording import read_recording

SHHS = "POSITION=0:right,1:left,2:supine,3:prone"


def test_each_epoch_has_the_position_of_most_of_it(recordings: list[Path]) -> None:
    recording = read_recording(recordings[0])
    (place,) = [n for n, signal in enumerate(recording.signals) if signal.label == "POSITION"]
    made = np.concatenate(
        [np.full(40, 2.0), np.full(20, 1.0), np.full(30, 7.0), np.full(30, np.nan), np.full(15, 0), np.full(15, 3)]
    )
    changed = replace(recording, source=lambda signal: made.astype(np.float32) if signal == place else recording.source(signal))
    found = read_position(changed, parse_position(SHHS), 6)
    assert [found.names[n] if n >= 0 else None for n in found.epochs] == ["supine", "left", None, None, None, None]
    whole = read_position(recording, parse_position(SHHS), 30)
    assert len(whole.epochs) == 30 and (whole.epochs >= 0).all()


def test_a_signal_that_is_not_there_is_refused_with_those_that_are(recordings: list[Path]) -> None:
    with pytest.raises(MontageError, match=r"no signals of that label; it has .*'POSITION'"):
        read_position(read_recording(recordings[0]), parse_position("Body=0:supine"), 30)


@pytest.mark.parametrize(
    ("text", "said"),
    [("POSITION", "write LABEL"), ("=0:supine", "write LABEL"), ("P=supine", "write LABEL"), ("P=0:up", "is not a position"),
     ("P=0:left,0:right", "given twice"), ("P=", "write LABEL")],
)  # fmt: skip
def test_a_rule_of_another_form_is_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_position(text)
    assert parse_position(" A=B =1:left,2.0: prone").codes == {1.0: "left", 2.0: "prone"}
