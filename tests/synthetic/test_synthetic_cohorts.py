"""Every cohort's rules, tried on files that look like its own: from folder to canonical channels, labels and person."""

from __future__ import annotations

import numpy as np
import pytest

from sleepfm.cli import main
from sleepfm.constants import CHANNELS
from sleepfm.signals.cohorts.catalogue import cohort_names, load_cohort
from sleepfm.signals.filters import preprocess, robust_scale
from sleepfm.signals.prepare import PreparedRecording, discover, prepare
from sleepfm.synthetic.cohort import write_cohort
from sleepfm.synthetic.layout import SOURCES, layout_names, load_layout
from sleepfm.synthetic.night import Night, draw_night

SEED = 3
# Channels that a cohort has, where not all of them.
CHANNELS_OF = {
    "mesa": set(CHANNELS) - {"EEG_C3"},
    "sleep-edf": {"EEG_C4", "EOG_L"},
    "sleep-edf-telemetry": {"EEG_C4", "EOG_L", "EMG_CHIN"},
}
# Where the EOG are not against a mastoid, what they are: left and right in the potentials of the night.
EYES_BELOW = ({"EOG(L)": 1.0}, {"EOG(R)": 1.0, "blinks": -1.25})
HORIZONTAL = ({"EOG(L)": 1.0, "EOG(R)": -1.0, "blinks": 1.25}, {})
REFERENCE_OF = {"shhs1": "nasion", "shhs2": "nasion", "mesa": "Fpz"}
SOURCE_OF = dict(zip(CHANNELS, ("C3", "C4", "E1", "E2", "CHIN", "ECG", "FLOW", "THORAX", "ABDOMEN", "SPO2"), strict=True))
# Formats that hold no events, and those that give a time of day in whole seconds.
WITHOUT_EVENTS = {"edf-hypnogram", "wsc-stages"}
WHOLE_SECONDS = {"luna-annot", "stages-csv"}


def truth(night: Night, cohort: str, channel: str) -> np.ndarray:
    """The channel as drawn, processed from its own rate."""
    label, rate = SOURCES[SOURCE_OF[channel]]
    signal = night.signals[label]
    if channel.startswith("EOG") and (cohort in REFERENCE_OF or cohort.startswith("sleep-edf")):
        shares = (EYES_BELOW if cohort in REFERENCE_OF else HORIZONTAL)[channel == "EOG_R"]
        signal = sum(np.float32(share) * night.signals[name] for name, share in shares.items())
        signal = signal - (night.signals[REFERENCE_OF[cohort]] if cohort in REFERENCE_OF else 0)
    if channel == "SPO2":
        return np.repeat(signal, 100)
    return robust_scale(preprocess(signal, rate, channel))[0]


def check_labels(night: Night, prepared: PreparedRecording, form: str) -> None:
    scored = np.where(np.isin(night.codes, (6, 9)), -1, night.stages)
    np.testing.assert_array_equal(prepared.stage, scored)
    if form in WITHOUT_EVENTS:
        assert (prepared.labels["apnea"] == -1).all() and not prepared.events
        return
    slack = 0.51 if form in WHOLE_SECONDS else 0.06
    found = sorted((event.type, event.onset) for event in prepared.events)
    # What is documented to be unreliable is not offered.
    left_out = load_cohort(prepared.cohort).scoring.unreliable
    drawn = sorted((event.kind, event.onset) for event in night.events if event.kind not in left_out)
    assert all((prepared.labels[kind] == -1).all() for kind in left_out)
    assert len(drawn) > 3 and [kind for kind, _ in found] == [kind for kind, _ in drawn]
    for (_, onset), (_, expected) in zip(found, drawn, strict=True):
        assert onset == pytest.approx(expected, abs=slack)


def test_every_cohort_has_a_layout():
    assert set(layout_names()) == set(cohort_names()) - {"generic", "nox"}


@pytest.mark.parametrize("cohort", layout_names())
def test_auto_makes_of_each_cohort_what_was_drawn(cohort, tmp_path):
    layout = load_layout(cohort)
    epochs = 180 if layout.upside_down else 60  # to be sure of what only the signal tells takes an hour of sleep
    written = write_cohort(tmp_path, 2, epochs / 120, SEED, cohort)
    paths = list(discover(tmp_path))
    assert paths == sorted(written)
    subjects = []
    for number, path in enumerate(written):
        night, prepared = draw_night(SEED, number, epochs), prepare(path, root=tmp_path)
        assert prepared.cohort == cohort and prepared.n_epochs == epochs
        assert set(prepared.channels) == CHANNELS_OF.get(cohort, set(CHANNELS)), prepared.provenance["missing"]
        for channel, signal in prepared.channels.items():
            expected = truth(night, cohort, channel)
            if channel == "SPO2":
                assert np.abs(signal - expected).max() <= 0.6
            else:
                assert np.corrcoef(signal, expected)[0, 1] > 0.98, channel
                assert prepared.provenance["channels"][channel]["derivation"]
        turned = layout.upside_down is not None and bool(layout.upside_down.signals(number))
        decision = prepared.provenance["channels"]["EEG_C4"]["polarity"]["decision"]
        assert (decision == "inverted") == (turned or cohort == "mesa")
        check_labels(night, prepared, layout.scoring.format)
        subjects.append(prepared.subject)
    assert len(set(subjects)) == 2 and all(subject.startswith(load_cohort(cohort).identity.prefix) for subject in subjects)


def test_the_doctor_finds_nothing_amiss_in_any_cohort(tmp_path, capsys):
    for cohort in ("chat", "wsc"):
        write_cohort(tmp_path / cohort, 1, 0.2, SEED, cohort)
    assert main(["doctor", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "cohort chat" in text and "cohort wsc" in text and "2 recordings: 2 usable" in text


def test_the_command_takes_a_cohort(tmp_path, capsys):
    assert main(["synth", str(tmp_path), "--subjects", "1", "--hours", "0.2", "--cohort", "mros1", "--workers", "1"]) == 0
    assert (tmp_path / "polysomnography/edfs/visit1/mros-visit1-aa0001.edf").is_file()
    assert main(["synth", str(tmp_path / "x"), "--subjects", "101", "--hours", "1", "--cohort", "sleep-edf"]) == 2
    assert "expected 1 to 100" in capsys.readouterr().err


def test_texts_whose_meaning_only_the_cohort_knows(tmp_path):
    path = write_cohort(tmp_path, 1, 0.5, SEED, "mesa")[0]
    before = prepare(path, root=tmp_path)
    xml = next(tmp_path.rglob("*-nsrr.xml"))
    text = xml.read_text()
    assert text.count("Hypopnea|Hypopnea") > 2
    xml.write_text(text.replace("Hypopnea|Hypopnea", "Unsure|Unsure"))
    after = prepare(path, root=tmp_path)
    assert after.events == before.events and "Unsure" not in str(after.provenance["scoring"]["ignored"])
    np.testing.assert_array_equal(after.labels["hypopnea"], before.labels["hypopnea"])
    elsewhere = prepare(path, load_cohort("mesa").model_copy(update={"scoring": load_cohort("sof").scoring}), root=tmp_path)
    assert not (elsewhere.labels["hypopnea"] == 1).any() and elsewhere.provenance["scoring"]["unclear"]["Unsure"] > 2
    assert (elsewhere.labels["hypopnea"][before.labels["hypopnea"] == 1] == -1).all()
