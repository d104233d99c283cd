"""Nights that were recorded upside down come out upright, the decision is told, and upright ones are left alone.

What is measured against Fpz, the nasion or nobody knows what is told and not weighed, and a scoring changes nothing.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sleepfm.constants import CHANNELS, Stage
from sleepfm.signals.cohorts.catalogue import cohort_names, load_cohort
from sleepfm.signals.filters import preprocess
from sleepfm.signals.polarity import EEG, EOG, POLAR, Polarity, decide_polarity
from sleepfm.signals.prepare import prepare
from sleepfm.signals.quality import Quality
from sleepfm.synthetic.cohort import write_cohort
from sleepfm.synthetic.night import Night, draw_night

SOURCE = {"EEG_C3": "EEG(sec)", "EEG_C4": "EEG", "EOG_L": "EOG(L)", "EOG_R": "EOG(R)", "ECG": "ECG"}
MASTOID = {"EEG_C3": "C3-M2", "EEG_C4": "C4-M1", "EOG_L": "E1-M2", "EOG_R": "E2-M1", "ECG": "ECG"}
NASION = MASTOID | {"EOG_L": "E1-nasion", "EOG_R": "E2-nasion"}
FPZ = MASTOID | {"EOG_L": "E1-Fpz", "EOG_R": "E2-Fpz"}
UNNAMED = MASTOID | {"EOG_L": "left EOG", "EOG_R": "right EOG"}


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
    assert decision["agreement_weighed"] == ["EEG_C3"]  # SHHS has its EOG against the nasion


def test_what_the_header_turns_over_is_upright(night, tmp_path):
    upright = prepare(night)
    turned = prepare(upside_down(night, tmp_path, {"EEG"}, header=True), scoring=scoring_of(night))
    np.testing.assert_allclose(turned.channels["EEG_C4"], upright.channels["EEG_C4"], atol=1e-5)
    assert turned.provenance["channels"]["EEG_C4"]["polarity"]["header_inverted"] == ["EEG"]
    assert turned.provenance["channels"]["EEG_C4"]["polarity"]["decision"] == "upright"


@pytest.mark.parametrize("labels", [set(), {"EEG"}, {"EEG", "EEG(sec)"}])
def test_a_night_is_decided_alike_with_and_without_its_scoring(night, tmp_path, labels):
    path = upside_down(night, tmp_path, labels)
    scored, alone = prepare(path, scoring=scoring_of(night)), prepare(path)
    assert (scored.stage >= 0).any() and (alone.stage < 0).all()
    for channel in POLAR:
        told = [found.provenance["channels"][channel]["polarity"] for found in (scored, alone)]
        assert told[0] == told[1]
        np.testing.assert_array_equal(scored.channels[channel], alone.channels[channel])
    assert told[0]["epochs"] > 50


def test_what_is_documented_of_all_turns_a_channel_by_itself(night, tmp_path):
    rules = load_cohort("shhs1").model_copy(update={"polarity": {"EEG_C4": "inverted"}})
    short = write_cohort(tmp_path, 1, 0.15, 5)[0]  # too little sleep to say anything
    by_rule, as_is = prepare(short, rules), prepare(short)
    assert by_rule.provenance["channels"]["EEG_C4"]["polarity"]["decision"] == "inverted"
    assert by_rule.provenance["channels"]["EEG_C4"]["polarity"]["asymmetry"] is None
    np.testing.assert_array_equal(by_rule.channels["EEG_C4"], -as_is.channels["EEG_C4"])
    np.testing.assert_array_equal(by_rule.channels["EEG_C3"], as_is.channels["EEG_C3"])


Signals = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def nights() -> list[dict[str, Signals]]:
    """Twelve nights of 90 minutes, each with the EOG against ``mastoid``, ``nasion`` and ``Fpz``."""
    result = []
    for seed in range(12):
        drawn = draw_night(seed, seed, 180).signals
        below = drawn["EOG(R)"] - np.float32(1.25) * drawn["blinks"]
        head = {name: preprocess(drawn[SOURCE[name]], 125, name) for name in (*EEG, "ECG")}
        eyes = {"mastoid": (drawn["EOG(L)"], drawn["EOG(R)"])}
        for reference in ("nasion", "Fpz"):
            eyes[reference] = (drawn["EOG(L)"] - drawn[reference], below - drawn[reference])
        result.append(
            {
                reference: head | {name: preprocess(eye, 50, name) for name, eye in zip(EOG, pair, strict=True)}
                for reference, pair in eyes.items()
            }
        )
    return result


def decide(signals: Signals, derivation: dict[str, str], cohort: str, quality: Signals | None = None) -> dict[str, Polarity]:
    good = {name: np.zeros(len(signal) // 3000, np.uint8) for name, signal in signals.items()}
    return decide_polarity(signals, good | (quality or {}), dict.fromkeys(signals, 1.0), derivation, load_cohort(cohort))


def turn(signals: Signals, *names: str) -> Signals:
    return {name: -signal if name in names else signal for name, signal in signals.items()}


@pytest.mark.parametrize(
    ("cohort", "reference", "derivation"),
    [
        ("shhs1", "nasion", NASION),
        ("shhs2", "nasion", NASION),
        ("generic", "mastoid", MASTOID),
        ("generic", "nasion", UNNAMED),
        ("mros1", "mastoid", MASTOID),
        ("cfs", "mastoid", MASTOID),
        ("cfs", "Fpz", FPZ),
        ("mesa", "Fpz", FPZ),
    ],
)
def test_an_upright_night_is_never_turned(nights, cohort, reference, derivation):
    decided_upright = 0
    for night in nights:
        decided = decide(night[reference], derivation, cohort)
        assert not any(polarity.inverted for polarity in decided.values())
        decided_upright += all(decided[channel].decision == "upright" for channel in EEG)
        if reference != "mastoid":
            assert decided["EEG_C4"].agreement["EOG_L"] < 0.0  # which would say that one of them is upside down
            assert "EOG_L" not in decided["EEG_C4"].weighed
    assert decided_upright >= 10 or cohort == "mesa"  # MESA's rule says inverted: an upright night is left undecided


@pytest.mark.parametrize("turned", [("EEG_C3",), ("EEG_C4",), EEG])
def test_eeg_upside_down_against_an_eog_to_the_nasion_is_found(nights, turned):
    found = 0
    for night in nights:
        decided = decide(turn(night["nasion"], *turned), NASION, "shhs1")
        assert not any(decided[name].inverted for name in POLAR if name not in turned)
        assert not any(decided[name].decision == "upright" for name in turned)
        found += all(decided[name].inverted for name in turned)
    assert found >= 10


def test_mesa_is_mended(nights):
    for night in nights:
        signals = {name: signal for name, signal in turn(night["Fpz"], "EEG_C4").items() if name != "EEG_C3"}
        decided = decide(signals, FPZ, "mesa")
        assert [name for name, polarity in decided.items() if polarity.inverted] == ["EEG_C4"]


def test_all_turned_together_is_found_where_it_is_documented_and_else_left(nights):
    found = 0
    for night in nights:
        turned = turn(night["mastoid"], *POLAR)
        decided = decide(turned, MASTOID, "cfs")
        found += all(decided[name].inverted for name in (*EEG, *EOG))
        assert all(decided[name].decision != "upright" for name in POLAR)
        assert decided["ECG"].decision == "undecided" and decided["ECG"].probability > 0.5
        alone = decide(turned, MASTOID, "generic")
        assert {alone[name].decision for name in (*EEG, *EOG)} == {"undecided"}
    assert found >= 9


@settings(max_examples=15, deadline=None)
@given(
    turned=st.sets(st.sampled_from(POLAR)),
    cohort=st.sampled_from(["shhs1", "cfs", "generic", "mesa"]),
    derivation=st.sampled_from([MASTOID, NASION, UNNAMED]),
    seed=st.integers(0, 2**16),
)
def test_upside_down_the_same_epochs_give_the_same_evidence_of_the_other_sign(nights, turned, cohort, derivation, seed):
    rng = np.random.default_rng(seed)
    signals = nights[seed % len(nights)]["nasion"]
    quality = {name: rng.choice([0, 0, 0, Quality.GAP, Quality.FLAT], 180).astype(np.uint8) for name in signals}
    before, after = (decide(s, derivation, cohort, quality) for s in (signals, turn(signals, *turned)))
    for name in POLAR:
        sign = -1.0 if name in turned else 1.0
        assert after[name].epochs == before[name].epochs and after[name].weighed == before[name].weighed
        assert (after[name].asymmetry or 0.0) == pytest.approx(sign * (before[name].asymmetry or 0.0), abs=1e-6)
        for other, value in before[name].agreement.items():
            expected = value if (name in turned) == (other in turned) else -value
            assert after[name].agreement[other] == pytest.approx(expected, abs=1e-6)


def test_the_signs_that_are_known_are_those_against_a_mastoid():
    known = set()
    signals = {name: np.random.default_rng(1).normal(size=30 * 3000).astype(np.float32).cumsum() for name in (*EEG, *EOG)}
    for cohort in map(load_cohort, cohort_names()):
        for channel in (*EEG, *EOG):
            for rule in cohort.channels.get(channel, ()):
                other = "EEG_C4" if channel == "EEG_C3" else "EEG_C3"
                decided = decide(
                    {name: signals[name] for name in (channel, other)}, MASTOID | {channel: rule.derivation}, "generic"
                )
                assert set(decided[channel].agreement) == {other}
                known |= {(channel, rule.derivation, bool(decided[channel].weighed))}
    electrode = {"EEG_C3": "C3", "EEG_C4": "C4", "EOG_L": "E1", "EOG_R": "E2"}
    for channel, derivation, weighed in known:
        reference = derivation.removeprefix(electrode[channel] + "-")
        assert weighed == (reference in ("M1", "M2", "A1", "A2", "linked mastoids")), derivation
    unknown = {derivation for _, derivation, weighed in known if not weighed}
    assert {"E1-Fpz", "E2-nasion", "left EOG", "Fpz-Cz", "C3-average", "left to right outer canthus"} <= unknown
    wrong = decide(signals, {"EEG_C3": "C4-M1", "EEG_C4": "C4-M1", "EOG_L": "", "EOG_R": "E1-M2"}, "generic")
    assert wrong["EEG_C3"].weighed == wrong["EOG_L"].weighed == wrong["EOG_R"].weighed == ()


def test_confidence_grows_with_the_night_and_has_a_limit(nights):
    signals = {"EEG_C4": -nights[0]["mastoid"]["EEG_C4"]}
    mixed = {"EEG_C4": "C4-M1"}
    probabilities = []
    for count in (20, 100, 180):
        quality = np.zeros(180, np.uint8)
        quality[count:] = Quality.GAP
        probabilities.append(decide(signals, mixed, "shhs1", {"EEG_C4": quality})["EEG_C4"].probability)
    assert probabilities[0] == 0.5 < probabilities[1] <= probabilities[2] <= 50 / 51 + 1e-9


def test_bad_epochs_are_left_out(nights):
    signals = nights[1]["mastoid"]
    usual = decide(signals, MASTOID, "cfs")
    bad = np.full(180, Quality.OUT_OF_RANGE, np.uint8)
    decided = decide(signals, MASTOID, "cfs", {"EEG_C4": bad})
    assert decided["EEG_C4"].epochs == 0 and decided["EEG_C4"].asymmetry is None
    assert decided["EEG_C3"].asymmetry == usual["EEG_C3"].asymmetry and "EEG_C4" not in decided["EEG_C3"].agreement
    third = np.where(np.arange(180) < 60, Quality.GAP, 0).astype(np.uint8)
    fewer = decide(signals, MASTOID, "cfs", {"EEG_C3": third})["EEG_C3"].epochs
    kept = decide({name: signal[60 * 3000 :] for name, signal in signals.items()}, MASTOID, "cfs")["EEG_C3"].epochs
    assert 20 < fewer < usual["EEG_C3"].epochs and abs(fewer - kept) <= 1


@lru_cache(maxsize=3)
def drawn_once(seed: int) -> Night:
    return draw_night(seed, seed, 180)


def spoiled(kind: str, seed: int) -> Signals:
    """A night whose upright EEG has what other signals leave in it."""
    night = drawn_once(seed)
    drawn, rng = night.signals, np.random.default_rng(seed)
    result = {name: preprocess(drawn[SOURCE[name]], 50, name) for name in EOG}
    result["ECG"] = preprocess(drawn["ECG"], 125, "ECG")
    blinks = np.interp(np.arange(180 * 3750) / 125, np.arange(180 * 1500) / 50, drawn["blinks"])
    for side, name in enumerate(EEG):
        signal = drawn[SOURCE[name]].astype(np.float64)
        signal += {
            "eyes": 0.15 * blinks,
            "ECG, alike": 60.0 * drawn["ECG"],
            "ECG, opposite": (60.0 - 120.0 * side) * drawn["ECG"],
            "sweat": 640.0 * np.convolve(rng.standard_normal(len(signal)), np.full(250, 1 / 250), "same"),
            "loose electrode": side * (3.0 * rng.standard_normal(len(signal)).cumsum() - signal),
            "nothing but wake": 0.15 * blinks,
        }[kind]
        result[name] = preprocess(signal.astype(np.float32), 125, name)
    if kind == "nothing but wake":
        awake = np.repeat(night.stages == Stage.W, 3000)
        result = {name: signal[awake] for name, signal in result.items()}
    return result


@pytest.mark.parametrize("kind", ["eyes", "ECG, alike", "ECG, opposite", "sweat", "loose electrode", "nothing but wake"])
def test_what_is_no_brain_turns_nothing_over(kind):
    for seed in range(3):
        signals = spoiled(kind, seed)
        for cohort in ("shhs1", "cfs"):
            decided = decide(signals, MASTOID, cohort)
            assert not any(decided[name].inverted for name in (*EEG, *EOG)), (kind, seed, decided)


@pytest.mark.parametrize("name", ["nox-a1/subject1.edf", "sleep-edf/short_psg.edf"])
def test_real_excerpts_are_not_turned(name, shared_data):
    channels = prepare(shared_data / name).provenance["channels"]
    decisions = {channel: channels[channel]["polarity"]["decision"] for channel in POLAR if channel in channels}
    assert decisions and "inverted" not in decisions.values()


def test_slow_waves_of_real_sleep_are_sharper_below(shared_data):
    """Excerpts of N2 and N3 published with YASA, repeated to the length that says something."""
    for name, rate in (("data_N2_spindles_15sec_200Hz.txt", 200), ("data_N3_no-spindles_30sec_100Hz.txt", 100)):
        excerpt = np.loadtxt(shared_data / "yasa" / name).astype(np.float32)
        signal = preprocess(np.tile(excerpt, 40 * 30 * rate // len(excerpt)), rate, "EEG_C4")
        decided = decide({"EEG_C4": signal}, MASTOID, "shhs1")["EEG_C4"]
        assert decided.epochs == 40 and decided.asymmetry is not None and decided.asymmetry < -0.05
        assert decided.decision == "upright"
