"""Every fault of a synthetic recording is seen where the truth says so, and nowhere else."""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import replace
from pathlib import Path

import edfio
import numpy as np
import pytest
from scipy.signal import welch

from sleepfm.cli import main
from sleepfm.constants import APNEA_TYPES
from sleepfm.signals.prepare import prepare
from sleepfm.signals.scorings.reader import read_scoring
from sleepfm.signals.scorings.scoring import Scoring
from sleepfm.synthetic.cohort import write_cohort, write_subject
from sleepfm.synthetic.faults.draw import add_faults
from sleepfm.synthetic.faults.rates import FaultRates, default_rates
from sleepfm.synthetic.faults.texts import FORMATS
from sleepfm.synthetic.layout import load_layout
from sleepfm.synthetic.night import draw_night
from sleepfm.synthetic.scoring_files import write_scoring

SEED, NUMBER, EPOCHS = 1, 1, 80
ADDED = ("snoring", "leg_movements", "ecg_in_eeg", "sweat", "mains")
REPLACED = ("saturation", "electrode_off", "electrode_lost", "spo2_dropout")
OF_SCORING = ("late_start", "early_end", "unscored", "notes", "kindless_apnea", "vocabulary")
XML = "polysomnography/annotations-events-nsrr/shhs1/shhs1-200002-nsrr.xml"


def write(out: Path, *kinds: str, seed: int = SEED) -> tuple[edfio.Edf, str, dict]:
    """EDF, scoring and truth of a recording that has these faults and no others."""
    path = write_subject(out, "shhs1", seed, EPOCHS, NUMBER, default_rates().only(*kinds))
    return edfio.read_edf(path), (out / XML).read_text(), json.loads((out / "truth" / f"{path.stem}.json").read_text())


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> tuple[edfio.Edf, str]:
    out = tmp_path_factory.mktemp("clean")
    return edfio.read_edf(write_subject(out, "shhs1", SEED, EPOCHS, NUMBER)), (out / XML).read_text()


def rates_of(edf: edfio.Edf) -> dict[str, int]:
    return {signal.label: round(signal.sampling_frequency) for signal in edf.signals}


def inside(truth: dict, label: str, rate: int, seconds: int) -> np.ndarray:
    """Samples of a signal that a fault touches."""
    mask = np.zeros(seconds * rate, dtype=bool)
    for fault in truth["faults"]:
        if label in fault["signals"]:
            mask[int(fault["onset"] * rate) : int(np.ceil((fault["onset"] + fault["duration"]) * rate))] = True
    return mask


def difference(clean: edfio.Edf, faulty: edfio.Edf, label: str) -> np.ndarray:
    return faulty.get_signal(label).data - clean.get_signal(label).data


@pytest.mark.parametrize("kind", [*ADDED, *REPLACED])
def test_a_fault_is_where_the_truth_says_and_nowhere_else(clean, tmp_path, kind):
    faulty, _, truth = write(tmp_path, kind)
    assert {fault["kind"] for fault in truth["faults"]} == {kind}
    for fault in truth["faults"]:
        assert fault["signals"] and fault["duration"] > 0
    for label, rate in rates_of(faulty).items():
        changed = difference(clean[0], faulty, label) != 0
        assert not changed[~inside(truth, label, rate, 30 * EPOCHS)].any(), label
    for fault in truth["faults"]:
        for label in fault["signals"]:
            rate = rates_of(faulty)[label]
            first, stop = int(fault["onset"] * rate), int((fault["onset"] + fault["duration"]) * rate)
            assert (difference(clean[0], faulty, label)[first:stop] != 0).mean() > 0.05, (label, fault)


@pytest.mark.parametrize("kind", OF_SCORING)
def test_a_fault_of_the_scoring_leaves_the_signals(clean, tmp_path, kind):
    faulty, text, truth = write(tmp_path, kind)
    assert text != clean[1] or kind == "kindless_apnea"
    for label in rates_of(faulty):
        assert not difference(clean[0], faulty, label).any()
    assert all(not fault["signals"] for fault in truth["faults"])


def pieces(clean: edfio.Edf, faulty: edfio.Edf, truth: dict, label: str) -> list[tuple[dict, np.ndarray, np.ndarray]]:
    """Each fault in a signal, what was added, and what is recorded."""
    rate, added = rates_of(faulty)[label], difference(clean, faulty, label)
    found = []
    for fault in truth["faults"]:
        if label in fault["signals"]:
            part = slice(int(fault["onset"] * rate), int((fault["onset"] + fault["duration"]) * rate))
            found.append((fault, added[part], faulty.get_signal(label).data[part]))
    return found


def strongest(values: np.ndarray, rate: int) -> float:
    """Frequency of most power in Hz."""
    frequency, power = welch(values - values.mean(), rate, nperseg=min(len(values), 20 * rate))
    return float(frequency[power.argmax()])


def test_what_is_added_is_what_its_name_says(clean, tmp_path):
    edf = clean[0]
    faulty, _, truth = write(tmp_path / "mains", "mains")
    labels = {label for fault in truth["faults"] for label in fault["signals"]}
    assert labels <= {"EEG", "EEG(sec)", "EMG", "ECG"}
    for label in labels:
        for _, added, _ in pieces(edf, faulty, truth, label):
            assert strongest(added, 125) == pytest.approx(60.0, abs=0.2)
    faulty, _, truth = write(tmp_path / "sweat", "sweat")
    for label in {label for fault in truth["faults"] for label in fault["signals"]}:
        for _, added, _ in pieces(edf, faulty, truth, label):
            assert 0.05 <= strongest(added, rates_of(edf)[label]) <= 0.55 and added.std() > 15
    faulty, _, truth = write(tmp_path / "ecg", "ecg_in_eeg")
    for label in truth["faults"][0]["signals"]:
        # Some recordings of the cohort have their EEG upside down.
        assert abs(np.corrcoef(difference(edf, faulty, label), edf.get_signal("ECG").data)[0, 1]) > 0.9
    faulty, _, truth = write(tmp_path / "snoring", "snoring")
    for _, added, _ in pieces(edf, faulty, truth, "EMG"):
        assert 20.0 < strongest(added, 125) < 62.0


def test_an_electrode_off_hums_out_of_range_or_is_an_open_input(tmp_path):
    forms = set()
    for seed, kind in itertools.product(range(6), ("electrode_off", "electrode_lost")):
        faulty, _, truth = write(tmp_path / kind / str(seed), kind, seed=seed)
        for fault in truth["faults"]:
            for label in fault["signals"]:
                signal, rate = faulty.get_signal(label), rates_of(faulty)[label]
                part = signal.digital[int(fault["onset"] * rate) : int((fault["onset"] + fault["duration"]) * rate)]
                step = abs(signal.physical_max - signal.physical_min) / (signal.digital_max - signal.digital_min)
                if label in ("NEW AIR", "THOR RES", "ABDO RES") or fault["detail"]["form"] == "open input":
                    assert np.ptp(part.astype(int)) * step <= max(4 * step, 2.5), label
                    forms.add("silent")
                else:
                    assert np.isin(part, (signal.digital_min, signal.digital_max)).mean() > 0.5, label
                    forms.add("out of range")
            if fault["kind"] == "electrode_lost":
                assert fault["onset"] + fault["duration"] == 30 * EPOCHS
    assert forms == {"silent", "out of range"}


def test_saturation_reaches_the_rails_and_dropouts_read_no_saturation(tmp_path):
    for seed in range(4):
        faulty, _, truth = write(tmp_path / str(seed), "saturation", "spo2_dropout", seed=seed)
        for fault in truth["faults"]:
            for label in set(fault["signals"]) - {"H.R."}:
                signal, rate = faulty.get_signal(label), rates_of(faulty)[label]
                part = slice(int(fault["onset"] * rate), int((fault["onset"] + fault["duration"]) * rate))
                if fault["kind"] == "saturation":
                    assert np.isin(signal.digital[part], (signal.digital_min, signal.digital_max)).mean() > 0.2
                else:
                    assert (signal.data[part] < 50.0).all()
                    stop = fault["onset"] + fault["duration"]
                    for event in scoring_of(tmp_path / str(seed)).events:
                        apart = event.onset + event.duration <= fault["onset"] + 0.06 or event.onset >= stop
                        assert apart or event.type != "desaturation"


def scoring_of(out: Path) -> Scoring:
    return read_scoring(out / XML)


def stage_of_epochs(scoring: Scoring, epochs: int) -> np.ndarray:
    stages = np.full(epochs, -2)
    for interval in scoring.stages:
        stages[round(interval.onset / 30) : round((interval.onset + interval.duration) / 30)] = interval.stage
    return stages


def test_a_recorder_left_running_adds_time_without_a_body(clean, tmp_path):
    codes = set()
    for seed in (SEED, *range(12)):
        faulty, _, truth = write(tmp_path / str(seed), "left_running", seed=seed)
        (fault,) = truth["faults"]
        assert fault["onset"] == 30 * EPOCHS and faulty.num_data_records == truth["seconds"] == 30 * EPOCHS + fault["duration"]
        stages = stage_of_epochs(scoring_of(tmp_path / str(seed)), truth["seconds"] // 30)
        assert set(stages[EPOCHS:]) == {0 if fault["detail"]["code"] == 0 else -1}
        codes.add(fault["detail"]["code"])
        assert len(truth["stages"]) == EPOCHS
        if seed == SEED:
            for label, rate in rates_of(faulty).items():
                both = (faulty.get_signal(label).digital[: 30 * EPOCHS * rate], clean[0].get_signal(label).digital)
                np.testing.assert_array_equal(*both)
    assert codes == {0, 9}


def test_epochs_that_nobody_scored_have_no_stage_and_no_event(clean, tmp_path):
    for kind in ("late_start", "early_end", "unscored"):
        _, _, truth = write(tmp_path / kind, kind)
        scoring = scoring_of(tmp_path / kind)
        blank = np.zeros(EPOCHS, dtype=bool)
        for fault in truth["faults"]:
            blank[int(fault["onset"]) // 30 : int(fault["onset"] + fault["duration"]) // 30] = True
        stages = stage_of_epochs(scoring, EPOCHS)
        assert (stages[blank] == -1).all() and 0 < blank.sum() < EPOCHS
        whole = stage_of_epochs(read_scoring_text(tmp_path, clean[1]), EPOCHS)
        np.testing.assert_array_equal(stages[~blank], whole[~blank])
        span = [(int(e["onset"] // 30), int(np.ceil((e["onset"] + e["duration"]) / 30))) for e in truth["events"]]
        assert len(scoring.events) == sum(not blank[first:stop].all() for first, stop in span)


def read_scoring_text(folder: Path, text: str) -> Scoring:
    path = folder / "text-nsrr.xml"
    path.write_text(text)
    return read_scoring(path)


def test_notes_change_nothing_that_is_scored(tmp_path):
    for cohort in ("shhs1", "apples", "nchsdb", "stages", "sleep-edf"):
        plain = prepare(write_subject(tmp_path / "plain", cohort, SEED, 40, 0), root=tmp_path / "plain")
        rates = default_rates().only("notes", "leg_movements")
        noted = prepare(write_subject(tmp_path / "noted", cohort, SEED, 40, 0, rates), root=tmp_path / "noted")
        np.testing.assert_array_equal(noted.stage, plain.stage)
        assert noted.events == plain.events
        truth = json.loads(next((tmp_path / "noted" / "truth").glob(f"{noted.path.stem}.json")).read_text())
        assert any(fault["kind"] == "notes" for fault in truth["faults"])


def test_apneas_without_a_kind_keep_their_place(tmp_path):
    out = tmp_path / "kindless"
    counts = []
    for seed in range(10):
        _, text, truth = write(out / str(seed), "kindless_apnea", seed=seed)
        turned = [fault for fault in truth["faults"] if fault["kind"] == "kindless_apnea"]
        apneas = [event for event in truth["events"] if event["kind"].endswith("apnea") and event["kind"] != "hypopnea"]
        assert text.count("Apnea|Apnea<") == len(turned) <= len(apneas)
        for fault in turned:
            assert any(e["onset"] == fault["onset"] and e["kind"] == fault["detail"]["true_kind"] for e in apneas)
        counts.append((len(turned), len(apneas)))
    assert any(0 < turned == all_ for turned, all_ in counts) and any(0 < turned < all_ for turned, all_ in counts)


@pytest.mark.parametrize("cohort", ["shhs1", "sleep-edf", "apples", "nchsdb", "stages"])
def test_a_scorers_own_words_are_in_the_file(tmp_path, cohort):
    used = set()
    for seed in range(8):
        out = tmp_path / str(seed)
        path = write_subject(out, cohort, seed, 40, 0, default_rates().only("vocabulary"))
        truth = json.loads((out / "truth" / f"{path.stem}.json").read_text())
        (fault,) = truth["faults"]
        files = [file for file in out.rglob("*") if file.is_file() and file != path and "truth" not in file.parts]
        content = b"".join(file.read_bytes() for file in files)
        kinds = {event["kind"] for event in truth["events"]} & fault["detail"]["words"].keys()
        for kind in kinds:
            assert fault["detail"]["words"][kind].encode() in content
        used.add(tuple(sorted(fault["detail"]["words"].items())))
    assert len(used) > 1


def test_each_fault_is_the_same_whatever_else_is_wrong(tmp_path):
    kinds = [*ADDED, *REPLACED, "left_running", "late_start", "early_end", "unscored"]
    _, _, every = write(tmp_path / "all", *kinds)
    for kind in kinds:
        _, _, alone = write(tmp_path / kind, kind)
        assert alone["faults"] == [fault for fault in every["faults"] if fault["kind"] == kind]


def contents(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_command_draws_faults_unless_asked_for_clean_nights(tmp_path):
    common = ["--subjects", "3", "--hours", "0.2", "--seed", "3"]
    assert main(["synth", str(tmp_path / "faulty"), *common, "--workers", "2"]) == 0
    assert main(["synth", str(tmp_path / "again"), *common, "--workers", "1"]) == 0
    assert contents(tmp_path / "faulty") == contents(tmp_path / "again")
    assert main(["synth", str(tmp_path / "clean"), *common, "--clean", "--workers", "1"]) == 0
    write_cohort(tmp_path / "plain", 3, 0.2, 3)
    assert contents(tmp_path / "clean") == contents(tmp_path / "plain")
    faulty, clean = contents(tmp_path / "faulty"), contents(tmp_path / "clean")
    assert not any(name.startswith("truth") for name in clean) and len([n for n in faulty if n.startswith("truth")]) == 3
    truths = [json.loads(path.read_text()) for path in (tmp_path / "faulty" / "truth").iterdir()]
    assert sum(len(truth["faults"]) for truth in truths) > 3
    assert main(["synth", str(tmp_path / "clean"), *common]) == 2
    assert contents(tmp_path / "clean") == clean


def test_rates_are_those_of_the_file():
    """Over many people, each fault happens as often as its share says (four standard deviations)."""

    rates, people = default_rates(), 400
    night = draw_night(SEED, NUMBER, 40)
    assert sum(event.kind in APNEA_TYPES for event in night.events) > 3  # without one, none can lack its kind
    short = {label: signal.copy() for label, signal in night.signals.items()}
    counts = dict.fromkeys(FaultRates.model_fields, 0)
    for seed in range(people):
        person = replace(night, subject=replace(night.subject, seed=1000 + seed))
        for kind in {fault.kind for fault in add_faults(person, rates, "nsrr-xml")[1]}:
            counts[kind] += 1
    for kind, count in counts.items():
        share = getattr(rates, kind).share
        assert abs(count - people * share) <= 4 * np.sqrt(people * share * (1 - share)), (kind, count / people, share)
    for label, signal in short.items():
        np.testing.assert_array_equal(signal, night.signals[label])


@pytest.mark.parametrize("cohort", ["shhs1", "sleep-edf", "apples", "nchsdb", "stages"])
def test_words_that_no_reader_can_know_are_never_a_negative(tmp_path, cohort):
    """Whatever words a scorer uses, no stage becomes another one, and no epoch with an event one without."""
    layout = load_layout(cohort)
    edf = write_subject(tmp_path, cohort, SEED, 40, NUMBER)
    scoring, night, before = layout.place(tmp_path, NUMBER)[1], draw_night(SEED, NUMBER, 40), prepare(edf, root=tmp_path)
    kindless = replace(night, events=tuple(replace(e, kind="apnea" if e.kind in APNEA_TYPES else e.kind) for e in night.events))
    for changed in (kindless, *(replace(night, words=words) for words in FORMATS[layout.scoring.format].vocabularies)):
        write_scoring(layout.scoring.format, scoring, changed)
        after = prepare(edf, root=tmp_path)
        assert ((after.stage == before.stage) | (after.stage == -1)).all(), changed.words
        for label in ("apnea", "hypopnea"):
            lost = (before.labels[label] == 1) & (after.labels[label] == 0)
            assert not lost.any(), (label, changed.words)
