"""Nights that were recorded upside down come out upright, the decision is told, and upright ones are left alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sleepfm.constants import CHANNELS, Stage
from sleepfm.data.synthetic.cohort import write_cohort
from sleepfm.data.synthetic.night import draw_night
from sleepfm.signals.cohort import load_cohort
from sleepfm.signals.filters import preprocess
from sleepfm.signals.polarity import EEG, POLAR, decide_polarity
from sleepfm.signals.prepare import prepare
from sleepfm.signals.quality import Quality

SOURCE = {"EEG_C3": "EEG(sec)", "EEG_C4": "EEG", "EOG_L": "EOG(L)", "EOG_R": "EOG(R)", "ECG": "ECG"}
RATE = {"EOG_L": 50, "EOG_R": 50}


@pytest.fixture(scope="module")
def night(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("polarity")
    return write_cohort(root, 1, 2.0, 5)[0]


def upside_down(edf: Path, folder: Path, labels: set[str], header: bool = False, samples: bool = True) -> Path:
    """A copy whose ``labels`` have samples of the other sign, or physical limits that are exchanged, or both."""
    data = bytearray(edf.read_bytes())
    count = int(data[252:256])
    names = [data[256 + 16 * n : 272 + 16 * n].decode().strip() for n in range(count)]
    base = 256 + count * (16 + 80 + 8)
    per_record = [int(data[256 + count * 216 + 8 * n : 264 + count * 216 + 8 * n]) for n in range(count)]
    body = np.frombuffer(data, "<i2", offset=256 * (count + 1)).reshape(-1, sum(per_record)).copy()
    for n in [names.index(label) for label in labels]:
        if header:
            low, high = slice(base + 8 * n, base + 8 * n + 8), slice(base + 8 * (count + n), base + 8 * (count + n) + 8)
            data[low], data[high] = data[high], data[low]
        if samples:
            at = sum(per_record[:n])
            body[:, at : at + per_record[n]] = -1 - body[:, at : at + per_record[n]]  # -128..127 onto itself
    path = folder / edf.name
    path.write_bytes(bytes(data[: 256 * (count + 1)]) + body.tobytes())
    return path


def scoring_of(edf: Path) -> Path:
    return next(edf.parents[3].rglob(f"{edf.stem}-nsrr.xml"))


@pytest.mark.parametrize("labels", [{"EEG"}, {"EEG(sec)"}, {"EEG", "EEG(sec)"}])
def test_an_inverted_night_comes_out_upright_and_says_so(night, tmp_path, labels):
    upright = prepare(night)
    turned = prepare(upside_down(night, tmp_path, labels), scoring=scoring_of(night))
    for channel in CHANNELS:
        np.testing.assert_allclose(turned.channels[channel], upright.channels[channel], atol=1e-5)
        assert turned.median[channel] == pytest.approx(upright.median[channel], abs=1e-4)
        assert turned.iqr[channel] == pytest.approx(upright.iqr[channel], rel=1e-5)
    for channel in EEG:
        decision = turned.provenance["channels"][channel]["polarity"]
        assert decision["decision"] == ("inverted" if SOURCE[channel] in labels else "upright")
        assert decision["cohort"] == "mixed" and decision["epochs"] > 50
        assert (decision["asymmetry"] > 0) == (SOURCE[channel] in labels)
        assert upright.provenance["channels"][channel]["polarity"]["decision"] == "upright"
    assert set(decision["agreement"]) == {"EEG_C3", "EOG_L", "EOG_R"}


def test_what_the_header_turns_over_is_upright(night, tmp_path):
    upright = prepare(night)
    turned = prepare(upside_down(night, tmp_path, {"EEG"}, header=True), scoring=scoring_of(night))
    np.testing.assert_allclose(turned.channels["EEG_C4"], upright.channels["EEG_C4"], atol=1e-5)
    assert turned.provenance["channels"]["EEG_C4"]["polarity"]["header_inverted"] == ["EEG"]
    assert turned.provenance["channels"]["EEG_C4"]["polarity"]["decision"] == "upright"


def test_without_scored_sleep_only_the_cohort_speaks(night, tmp_path):
    (tmp_path / "alone").mkdir()
    path = upside_down(night, tmp_path / "alone", {"EEG", "EEG(sec)"})
    undecided = prepare(path).provenance["channels"]["EEG_C4"]["polarity"]
    assert undecided["decision"] == "undecided" and undecided["probability_inverted"] == 0.5 and undecided["asymmetry"] is None
    rules = load_cohort("shhs1").model_copy(update={"polarity": {"EEG_C4": "inverted"}})
    by_rule, as_is = prepare(path, rules), prepare(path)
    assert by_rule.provenance["channels"]["EEG_C4"]["polarity"]["decision"] == "inverted"
    np.testing.assert_array_equal(by_rule.channels["EEG_C4"], -as_is.channels["EEG_C4"])
    np.testing.assert_array_equal(by_rule.channels["EEG_C3"], as_is.channels["EEG_C3"])


@pytest.fixture(scope="module")
def nights() -> list[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Channels and stages of twelve nights of an hour."""
    result = []
    for seed in range(12):
        drawn = draw_night(seed, seed, 120)
        channels = {
            channel: preprocess(drawn.signals[label], RATE.get(channel, 125), channel) for channel, label in SOURCE.items()
        }
        result.append((channels, drawn.stages))
    return result


def good(stages: np.ndarray) -> dict[str, np.ndarray]:
    return {channel: np.zeros(len(stages), np.uint8) for channel in POLAR}


@pytest.mark.parametrize("cohort", ["shhs1", "shhs2", "generic"])
def test_an_upright_night_is_never_turned(nights, cohort):
    for channels, stages in nights:
        decided = decide_polarity(channels, good(stages), stages, load_cohort(cohort))
        assert not any(polarity.inverted for polarity in decided.values())
        assert all(decided[channel].decision == "upright" for channel in EEG)


def test_all_turned_together_is_found_where_it_is_documented_and_else_left(nights):
    mixed = load_cohort("generic").model_copy(update={"polarity": dict.fromkeys((*EEG, "EOG_L", "EOG_R"), "mixed")})
    found = 0
    for channels, stages in nights:
        turned = {channel: -signal for channel, signal in channels.items()}
        decided = decide_polarity(turned, good(stages), stages, mixed)
        found += decided["EEG_C3"].inverted and decided["EOG_L"].inverted
        assert decided["EEG_C3"].decision != "upright"
        assert decided["ECG"].decision == "undecided" and decided["ECG"].probability > 0.5
        alone = decide_polarity(turned, good(stages), stages, load_cohort("generic"))
        assert not any(polarity.inverted for polarity in alone.values())
    assert found >= 9


def test_confidence_grows_with_the_night_and_has_a_limit(nights):
    channels, stages = nights[0]
    turned = {"EEG_C4": -channels["EEG_C4"]}
    mixed = load_cohort("generic").model_copy(update={"polarity": {"EEG_C4": "mixed"}})
    sleep = np.flatnonzero((stages == Stage.N2) | (stages == Stage.N3))
    probabilities = []
    for count in (5, 20, len(sleep)):
        scored = np.full_like(stages, Stage.UNSCORED)
        scored[sleep[:count]] = stages[sleep[:count]]
        probabilities.append(decide_polarity(turned, good(stages), scored, mixed)["EEG_C4"].probability)
    assert probabilities[0] == 0.5 < probabilities[1] <= probabilities[2] <= 50 / 51 + 1e-9


def test_bad_epochs_are_left_out(nights):
    channels, stages = nights[1]
    quality = good(stages)
    quality["EEG_C4"][:] = Quality.OUT_OF_RANGE
    decided = decide_polarity(channels, quality, stages, load_cohort("shhs1"))
    assert decided["EEG_C3"].decision == "upright" and decided["EEG_C3"].epochs > 20
    sleep = np.flatnonzero((stages == Stage.N2) | (stages == Stage.N3))
    quality["EOG_L"][sleep[: len(sleep) // 3]] = Quality.GAP
    fewer = decide_polarity(channels, quality, stages, load_cohort("shhs1"))["EEG_C3"].epochs
    assert len(sleep) // 2 < fewer <= len(sleep) - len(sleep) // 3
