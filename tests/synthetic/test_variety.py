"""Nights for training vary in people, recorders and scorers; what a knob draws depends on the seed and the person alone."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy.signal import welch

from sleepfm.cli import main
from sleepfm.constants import STAGE_NAMES, Stage
from sleepfm.errors import ConfigError, UsageError
from sleepfm.signals.cohorts.catalogue import load_rules
from sleepfm.signals.prepare import prepare
from sleepfm.synthetic.cohort import write_cohort
from sleepfm.synthetic.layout import Layout
from sleepfm.synthetic.night import Night, draw_night, night_of
from sleepfm.synthetic.subject import draw_subject
from sleepfm.synthetic.variety.config import Variety, load_variety
from sleepfm.synthetic.variety.fit_scorers import fit, scored_nights
from sleepfm.synthetic.variety.montage import rederive
from sleepfm.synthetic.variety.people import vary
from sleepfm.synthetic.variety.recorder import Recorder, draw_recorder, record
from sleepfm.synthetic.variety.recording import draw_varied
from sleepfm.synthetic.variety.scorer import call_stages, distance_to_change, scorer_statistics

ROOT = Path(__file__).resolve().parents[2]
PEOPLE = 120
OF_PEOPLE = (
    "age",
    "sex",
    "traits",
    "insomnia",
    "apnea",
    "alpha_intrusion",
    "rem_without_atonia",
    "medication",
    "arousals",
    "ectopic",
)
OF_RECORDERS = ("montage", "rates", "amplifier", "gains", "polarity", "noise", "channels")


@pytest.fixture(scope="module")
def everything() -> Variety:
    return load_variety("synthetic/train.yaml")


def without(variety: Variety, knob: str) -> Variety:
    return variety.model_copy(update={knob: None})


def alone(variety: Variety, knob: str) -> Variety:
    return Variety(**{knob: getattr(variety, knob)})


def told(recorder: Recorder) -> dict:
    own = {key: value for key, value in vars(recorder).items() if key != "layout"}
    return own | {"signals": {label: item.model_dump() for label, item in recorder.layout.signals.items()}}


def test_all_knobs_off_is_the_night_of_the_plain_cohort() -> None:
    varied, plain = draw_varied(5, 2, 60, Variety()), draw_night(5, 2, 60)
    assert varied.night.subject == plain.subject
    assert varied.night.codes.tolist() == plain.codes.tolist() and varied.night.events == plain.events
    assert all(np.array_equal(varied.night.signals[label], plain.signals[label]) for label in plain.signals)
    drawn = list(varied.recorder.layout.draw(varied.night, 2))
    for raw, kept in zip(drawn, record(drawn, varied.recorder, plain.subject), strict=True):
        assert np.array_equal(raw, kept)


@pytest.mark.parametrize("knob", OF_PEOPLE)
def test_a_knob_of_people_changes_somebody_and_draws_the_same_beside_others(everything: Variety, knob: str) -> None:
    plain = [draw_subject(1, number) for number in range(24)]
    alone_ = [vary(subject, alone(everything, knob)) for subject in plain]
    changed = {key for a, b in zip(plain, alone_, strict=True) for key, value in asdict(a).items() if value != asdict(b)[key]}
    assert changed and not changed & {"number", "seed"}
    # What no other knob touches is the same with all of them as with this one.
    others = without(everything, knob)
    for subject, mine in zip(plain, alone_, strict=True):
        rest, both = asdict(vary(subject, others)), asdict(vary(subject, everything))
        for key, value in asdict(subject).items():
            if key not in changed:
                assert both[key] == rest[key], key
            elif rest[key] == value and knob != "age":
                assert both[key] == asdict(mine)[key], key


@pytest.mark.parametrize("knob", OF_RECORDERS)
def test_a_knob_of_recorders_changes_somebody_and_nothing_of_the_others(everything: Variety, knob: str) -> None:
    plain = [draw_subject(1, number) for number in range(24)]
    with_all = [told(draw_recorder(subject, everything)) for subject in plain]
    rest = [told(draw_recorder(subject, without(everything, knob))) for subject in plain]
    assert with_all != rest
    for both, others in zip(with_all, rest, strict=True):
        # Labels tell the derivations, and only what is recorded has a gain, a sign and noise.
        if knob in ("montage", "channels"):
            assert both["filters"] == others["filters"]
            rates = [{item["rate"] for item in told_["signals"].values() if item["unit"] == "uV"} for told_ in (both, others)]
            assert not rates[0] or rates[0] <= rates[1]
        else:
            keys = {"rates": {"signals"}, "amplifier": {"filters", "signals"}, "gains": {"gains"}, "polarity": {"signs"}}
            differing = {key for key in both if both[key] != others[key]}
            assert differing <= keys.get(knob, {"noise"})


def test_what_is_drawn_is_a_function_of_seed_and_person(everything: Variety) -> None:
    first = draw_varied(9, 3, 40, everything)
    second = draw_varied(9, 3, 40, everything)
    assert asdict(first.night.subject) == asdict(second.night.subject) and told(first.recorder) == told(second.recorder)
    signals = [record(each.recorder.layout.draw(each.night, 3), each.recorder, each.night.subject) for each in (first, second)]
    assert all(np.array_equal(a, b) for a, b in zip(*signals, strict=True))
    assert told(first.recorder) != told(draw_varied(9, 4, 40, everything).recorder)


def test_people_are_as_wide_as_the_ranges_say(everything: Variety) -> None:
    people = [vary(draw_subject(2, number), everything) for number in range(PEOPLE)]
    ages, index = np.array([person.age for person in people]), np.array([person.index for person in people])
    assert ages.min() < 12 and ages.max() > 85
    assert np.mean(index < 5) > 0.2 and np.mean(index > 30) > 0.15 and index.max() <= 130
    assert {person.sex for person in people} == {"female", "male"}
    young, old = ages < 20, ages > 70
    slow = np.array([person.slow_wave for person in people])
    assert np.median(slow[young]) > 1.6 * np.median(slow[old])
    central = np.array([person.central_share for person in people])
    assert np.mean(central > 0.5) > 0.05
    assert all(0 <= getattr(person, name) <= 1 for person in people for name in ("apnea_share", "central_share", "mixed_share"))
    assert 0.02 < np.mean([person.alpha_intrusion > 0 for person in people]) < 0.3


def test_an_unknown_trait_is_refused_by_name() -> None:
    variety = load_variety("synthetic/train.yaml", ("traits.ratios={alhpa: [1, 2]}",))
    with pytest.raises(ConfigError, match="alhpa"):
        vary(draw_subject(1, 0), variety)
    with pytest.raises(ConfigError, match="a range needs its lower end first"):
        load_variety("synthetic/train.yaml", ("gains=[2, 1]",))


def test_held_out_ranges_are_others_than_those_of_training(everything: Variety) -> None:
    held_out = load_variety("synthetic/held-out.yaml")
    assert held_out.rates is not None and everything.rates is not None and everything.montage and held_out.montage
    assert not held_out.rates.signals.keys() & everything.rates.signals.keys()
    assert not held_out.montage.eeg.keys() & everything.montage.eeg.keys()
    draw_varied(1, 0, 20, held_out)


def sigma(signal: np.ndarray, rate: int, low: float, high: float) -> float:
    hertz, power = welch(signal, rate, nperseg=4 * rate)
    return float(power[(hertz >= low) & (hertz < high)].sum())


@pytest.fixture(scope="module")
def night() -> Night:
    return draw_night(3, 1, 120)


def test_derivations_see_what_their_places_see(night: Night) -> None:
    frontal, bipolar = rederive(night, "Fz-M1", "Fpz-Cz"), rederive(night, "C3-M1", "C4-LE")
    deep = np.repeat(night.stages == Stage.N3, 30 * 125)
    awake = np.repeat(night.stages == Stage.W, 30 * 125)
    c3 = night.signals["EEG(sec)"]
    # The same-side mastoid sees part of what C3 sees.
    same = bipolar.signals["EEG(sec)"]
    assert 0.5 * c3[deep].std() < same[deep].std() < 0.95 * c3[deep].std()
    assert np.corrcoef(c3, same)[0, 1] > 0.9
    # Slow waves are largest in front, blinks are seen there, and fast rhythms less.
    fz = frontal.signals["EEG(sec)"]
    assert sigma(fz[deep], 125, 0.5, 2) / sigma(fz[deep], 125, 8, 13) > 1.2 * sigma(c3[deep], 125, 0.5, 2) / sigma(
        c3[deep], 125, 8, 13
    )
    blinks = np.repeat(night.signals["blinks"], 5)[::2][: len(fz)]
    assert abs(np.corrcoef(fz[awake], blinks[awake])[0, 1]) > abs(np.corrcoef(c3[awake], blinks[awake])[0, 1]) + 0.05
    assert all(
        np.array_equal(frontal.signals[key], night.signals[key]) for key in night.signals if key not in ("EEG", "EEG(sec)")
    )
    with pytest.raises(ConfigError, match="Pz"):
        rederive(night, "Pz-M1", "C4-M1")


def test_what_an_amplifier_does_is_seen_in_the_recording(night: Night) -> None:
    wide = load_variety(
        "synthetic/train.yaml", ("amplifier.high_pass=[0.5, 0.5]", "amplifier.low_pass=[15, 15]", "amplifier.notch=0")
    )
    subject = night.subject
    recorder = draw_recorder(subject, Variety(amplifier=wide.amplifier))
    layout = recorder.layout
    raw = dict(zip(layout.signals, layout.draw(night, 1), strict=True))
    kept = dict(zip(layout.signals, record(layout.draw(night, 1), recorder, subject), strict=True))
    label = "EEG C4-M1"
    assert sigma(kept[label], 125, 30, 60) < 0.35 * sigma(raw[label], 125, 30, 60)
    assert sigma(kept[label], 125, 4, 8) > 0.7 * sigma(raw[label], 125, 4, 8)
    assert np.array_equal(kept["SpO2"], raw["SpO2"])
    loud = draw_recorder(
        subject,
        load_variety("synthetic/train.yaml", ("noise.mains=[30, 30]", "noise.hertz={'50': 1, '60': 0}")).model_copy(
            update=dict.fromkeys(("montage", "rates", "amplifier", "gains", "polarity", "channels"))
        ),
    )
    hum = dict(zip(layout.signals, record(layout.draw(night, 1), loud, subject), strict=True))
    assert sigma(hum[label], 125, 49.5, 50.5) > 20 * sigma(raw[label], 125, 49.5, 50.5)


def test_alpha_intrudes_atonia_fails_and_beats_come_early() -> None:
    plain = draw_subject(3, 1)
    knobs = load_variety(
        "synthetic/train.yaml",
        (
            "alpha_intrusion={share: 1, microvolts: [8, 8]}",
            "rem_without_atonia={share: 1, of_rem: [0.9, 0.9]}",
            "ectopic={share: 1, per_hour: [200, 200]}",
        ),
    )
    only = Variety(alpha_intrusion=knobs.alpha_intrusion, rem_without_atonia=knobs.rem_without_atonia, ectopic=knobs.ectopic)
    before, after = night_of(plain, 120), night_of(vary(plain, only), 120)
    assert before.stages.tolist() == after.stages.tolist()
    deep = np.repeat(before.stages == Stage.N3, 30 * 125)
    rem = np.repeat(before.stages == Stage.REM, 30 * 125)
    assert sigma(after.signals["EEG"][deep], 125, 8, 12) > 2 * sigma(before.signals["EEG"][deep], 125, 8, 12)
    assert after.signals["EMG"][rem].std() > 1.3 * before.signals["EMG"][rem].std()
    # A premature beat is followed by a pause: intervals vary more.
    rates = [night.signals["H.R."] for night in (before, after)]
    assert np.abs(np.diff(rates[1])).mean() > np.abs(np.diff(rates[0])).mean()


def test_scorers_disagree_as_five_scorers_of_one_night_do() -> None:
    """As often, for each stage, and more often beside a change; in runs; more in some nights than in others."""
    statistics = scorer_statistics()
    nights = [draw_subject(7, number) for number in range(60)]
    stages = np.repeat(np.random.default_rng(0).integers(0, 5, 240), np.random.default_rng(1).integers(1, 25, 240))
    codes = np.array([0, 1, 2, 3, 5], dtype=np.int8)[stages]
    bucket = np.searchsorted(statistics.distances, distance_to_change(codes), side="right") - 1
    wrong = np.array([call_stages(subject, codes) != codes for subject in nights])
    for stage, name in enumerate(STAGE_NAMES):
        for number, row in enumerate(statistics.called[name]):
            here = (stages == stage) & (bucket == number)
            assert wrong[:, here].mean() == pytest.approx(1 - row[stage] / sum(row), abs=0.06), (name, number)
    again = wrong[:, 1:][:, :].copy()
    runs = again[wrong[:, :-1] & (stages[1:] == stages[:-1])].mean()
    assert runs > 2 * wrong.mean()
    assert wrong.mean(axis=1).std() > 0.04


def test_distance_to_a_change_is_that_of_a_slow_search() -> None:
    stages = np.random.default_rng(3).integers(0, 2, 60).cumsum() % 3
    slow = [min((abs(a - b) for b in range(60) if stages[b] != stages[a]), default=60) for a in range(60)]
    assert distance_to_change(stages).tolist() == slow
    assert distance_to_change(np.zeros(4, dtype=np.int8)).tolist() == [4] * 4


def test_the_scorers_numbers_are_what_the_fit_prints(shared_data: Path) -> None:
    committed = yaml.safe_load((ROOT / "sleepfm" / "synthetic" / "variety" / "scorers.yaml").read_text())
    assert fit(scored_nights(shared_data / "dreem-dod-hypnograms")) == committed


def test_unscored_and_moving_epochs_stay_so() -> None:
    codes = np.array([9, 6, -1, 0, 2, 4], dtype=np.int8)
    assert call_stages(draw_subject(1, 1), codes)[:3].tolist() == [9, 6, -1]


def test_recordings_are_read_by_their_rules(tmp_path: Path) -> None:
    """Every channel that was recorded is found; labels say what was derived."""
    arguments = [
        "synth",
        str(tmp_path),
        "--subjects",
        "6",
        "--hours",
        "0.2",
        "--config",
        "synthetic/train.yaml",
        "--workers",
        "1",
    ]
    assert main([*arguments, "--set", "faults=false"]) == 0
    rules = load_rules(str(ROOT / "configs" / "synthetic" / "cohort.yaml"))
    for path in sorted(tmp_path.rglob("*.edf")):
        truth = json.loads((tmp_path / "truth" / f"{path.stem}.json").read_text())
        night = prepare(path, rules, root=tmp_path)
        derivations = truth["recorder"]["derivations"]
        labels = truth["recorder"]["channels"]
        for channel, derivation in zip(("EEG_C3", "EEG_C4"), derivations, strict=True):
            assert (channel in night.channels) == (f"EEG {derivation}" in labels)
        assert ("ECG" in night.channels) == ("ECG" in labels) and ("SPO2" in night.channels) == ("SpO2" in labels)
        assert len(night.channels) == len(labels)
    with pytest.raises(UsageError, match="contains a cohort with"):
        write_cohort(tmp_path, 4, 0.2, 1, variety=Variety())


def test_options_that_do_not_go_together_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--subjects", "1", "--hours", "0.2"]
    for words, said in (
        (["--set", "age=null"], "need --config"),
        (["--config", "synthetic/train.yaml", "--cohort", "mesa"], "give only one of them"),
        (["--config", "synthetic/train.yaml", "--build", "segment_epochs=20"], "--build needs --shards"),
    ):
        assert main(["synth", str(tmp_path / "x"), *size, *words]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_streaming_removes_no_file_that_it_has_not_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import sleepfm.commands.synth_shards as streaming
    from sleepfm.files import sha256_file, write_json

    people, shards = tmp_path / "people", tmp_path / "shards"
    words = ["synth", str(people), "--subjects", "2", "--hours", "0.11", "--workers", "1", "--config", "synthetic/train.yaml"]
    assert main(words) == 0
    edfs = sorted(people.rglob("*.edf"))
    written = {path.relative_to(people).as_posix(): sha256_file(path) for path in edfs}
    edfs[0].write_bytes(edfs[0].read_bytes() + b"mine")
    # In the place of a recording that is still to come into the data set.
    assert main([*words, "--shards", str(shards)]) == 2
    assert "is not the recording of this cohort" in capsys.readouterr().err
    assert all(path.exists() for path in edfs) and not shards.exists()
    # After it has come there.
    shards.mkdir()
    write_json(people / streaming.JOURNAL, {"recordings": 2, "files": written})
    assert main([*words, "--shards", str(shards)]) == 0
    assert [path.exists() for path in edfs] == [True, False]
    assert edfs[0].read_bytes().endswith(b"mine") and len(list(people.rglob("*.xml"))) == 2


@pytest.mark.slow
def test_a_data_set_made_part_by_part_is_that_of_all_recordings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where it was ended between a part and the removal of its recordings."""
    import sleepfm.commands.synth_shards as streaming

    monkeypatch.setattr(streaming, "SHARDS_AT_A_TIME", 1)
    size = ["--subjects", "5", "--hours", "0.2", "--workers", "1", "--config", "synthetic/train.yaml"]
    streamed = [
        "synth",
        str(tmp_path / "part"),
        *size,
        "--shards",
        str(tmp_path / "streamed"),
        "--build",
        "recordings_per_shard=2",
    ]
    with monkeypatch.context() as killed:
        killed.setattr(streaming, "write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            main(streamed)
    assert len(list((tmp_path / "part").rglob("*.edf"))) == 2
    assert main(streamed) == 0
    assert "gone from the source" not in capsys.readouterr().out
    assert not list((tmp_path / "part").rglob("*.edf"))
    assert len(list((tmp_path / "part" / "truth").glob("*.json"))) == 5
    assert main(["synth", str(tmp_path / "whole"), *size]) == 0
    rules = str(ROOT / "configs" / "synthetic" / "cohort.yaml")
    build = [
        "build",
        str(tmp_path / "whole"),
        str(tmp_path / "built"),
        "--cohort",
        rules,
        "recordings_per_shard=2",
        "--workers",
        "1",
    ]
    done = subprocess.run([sys.executable, "-m", "shards", *build], capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    names = sorted(path.relative_to(tmp_path / "built") for path in (tmp_path / "built" / "shards").iterdir())
    assert names and all(
        (tmp_path / "streamed" / name).read_bytes() == (tmp_path / "built" / name).read_bytes() for name in names
    )
    digests = [json.loads((tmp_path / folder / "dataset.json").read_text())["digest"] for folder in ("streamed", "built")]
    assert digests[0] == digests[1]
    assert main(streamed) == 0


def test_places_of_recordings_do_not_depend_on_the_person(everything: Variety) -> None:
    layouts: list[Layout] = [draw_recorder(draw_subject(1, number), everything).layout for number in range(3)]
    assert len({layout.place(Path("x"), 4) for layout in layouts}) == 1
