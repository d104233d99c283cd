"""Names of people in every text field of recordings and scorings, and none of them in what is written."""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from made_edf import Made, noise, tal, write_edf

from shards.build_config import load_build_config
from shards.privacy import kept_message
from sleepfm.cli import main as sleepfm
from sleepfm.data.dataset import Dataset
from sleepfm.data.reader import ShardReader
from sleepfm.data.scored_events import unclear_events
from sleepfm.errors import MontageError
from sleepfm.signals.cohorts.catalogue import load_cohort
from sleepfm.signals.examine import examine, require_channels
from sleepfm.signals.scorings.free_text import digest_of, without_texts
from sleepfm.signals.scorings.text_counts import TextCounts

RELEASED = Path(__file__).parents[1] / "released" / "0.1.0"
# Five letters, so that it stands whole in fields of eight, and that no noise has them.
NAME = "Qxlan"
NOTE = f'{NAME} O\'Brien, born 12.03.1961 "Jo"'
# Of every file.
PLACE = "ward7"
EPOCHS = 30
START = ("02.03.04", "22.30.00")


def made(path: Path, labels: tuple[str, ...] = ("C4-M1", "LOC-M2"), unit: str = "uV", texts=None, **fields) -> Path:
    """A recording with a note in each of its header's free fields, and ``texts`` as its annotations (onset, text)."""
    first = zlib.crc32(path.name.encode())
    signals = [
        Made(label, noise(100 * 30 * EPOCHS, first + seed), 100, unit) for seed, label in enumerate((*labels, f"{NAME} Aux 1"))
    ]
    stamps = None
    if texts is not None:
        at = dict(texts)
        stamps = [tal(f"+{n}") + (tal(f"+{n}", "30", at[n]) if n in at else b"") for n in range(30 * EPOCHS)]
    fields = {"patient": f"X F 12-MAR-1961 {NAME}", "recording": f"Startdate X {NAME}", "start": START} | fields
    write_edf(path, signals, stamps=stamps, variant="EDF+C" if texts is not None else "", **fields)
    count = len(signals) + (stamps is not None)
    with path.open("r+b") as file:
        for first in (256 + 16 * count, 256 + (16 + 80 + 8 * 5) * count):
            file.seek(first)
            file.write(f"{NAME} electrode 50 Hz".ljust(80).encode() * count)
    return path


def nsrr(path: Path, concept: str) -> None:
    stage = "".join(
        f"<ScoredEvent><EventType>Stages|Stages</EventType><EventConcept>Stage 2 sleep|2</EventConcept><Start>{30 * n}</Start>"
        "<Duration>30</Duration></ScoredEvent>"
        for n in range(EPOCHS)
    )
    event = (
        f"<ScoredEvent><EventType>{{}}</EventType><EventConcept>{concept}</EventConcept><Notes>{NAME}</Notes><Start>61</Start>"
        "<Duration>20</Duration></ScoredEvent>"
    )
    both = event.format("Respiratory|Respiratory") + event.format(f"Remarks|{NAME}")
    path.write_text(
        f"<PSGAnnotation><SoftwareVersion>{NAME}</SoftwareVersion><EpochLength>30</EpochLength><ScoredEvents>{stage}{both}"
        "</ScoredEvents></PSGAnnotation>"
    )


def table(path: Path, **rows: str) -> None:
    """A table of events with a stage an epoch and further ``rows`` of an onset and a text."""
    lines = [f"{30 * n},30,{'N2' if n else 'W'}" for n in range(EPOCHS)] + list(rows.values())
    path.write_text("\n".join(["onset,duration,event", *lines]) + "\n")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("planted")
    stages = [(30 * n, "Sleep stage N2") for n in range(EPOCHS)]
    notes = [(31, NOTE), (65, f"apnea? {NAME}"), (95, f"Patient {NAME} coughs"), (125, "Unsure"), (126, "Lights off")]
    made(folder / f"{PLACE}annotated.edf", texts=[*stages, *notes])
    made(folder / f"{PLACE}nsrr.edf")
    nsrr(folder / f"{PLACE}nsrr-nsrr.xml", f"{NAME} was here")
    made(folder / f"{PLACE}listed.edf")
    table(folder / f"{PLACE}listed.csv", note=f'70,5,"{NAME}, 1961"', breath=f"130,20,odd apnoea {NAME}")
    made(folder / f"{PLACE}stage.edf", texts=[*stages[:-1], (30 * (EPOCHS - 1), f"Sleep stage {NAME}")])
    made(folder / f"{PLACE}time.edf")
    table(folder / f"{PLACE}time.csv", bad=f"{NAME},5,x")
    made(folder / f"{PLACE}negative.edf")
    table(folder / f"{PLACE}negative.csv", bad=f"70,-5,{NAME}")
    made(folder / f"{PLACE}root.edf")
    (folder / f"{PLACE}root-nsrr.xml").write_text(f"<{NAME}/>")
    made(folder / f"{PLACE}unmapped.edf", (f"{NAME} a", f"{NAME} b"))
    made(folder / f"{PLACE}twice.edf", ("C4-M1", "C4-M1", "LOC-M2"))
    made(folder / f"{PLACE}unit.edf", unit=f"{NAME}s")
    made(folder / f"{PLACE}count.edf", claimed=NAME)
    made(folder / f"{PLACE}start.edf", start=(f"{NAME}", f"{NAME}"))
    made(folder / f"{PLACE}seconds.edf", seconds=NAME)
    (folder / f"{PLACE}letter.edf").write_text(f"{NAME} wrote this letter.\n" * 40)
    return folder


def written(folder: Path) -> dict[str, str]:
    """Every file below ``folder`` as text, tables column by column."""
    found = {}
    for path in sorted(folder.rglob("*") if folder.is_dir() else [folder]):
        if path.is_file():
            text = path.read_bytes().decode("latin-1")
            if path.suffix == ".parquet":
                text += repr(pq.read_table(path).to_pydict()) + repr(pq.read_schema(path).metadata)
            found[path.name] = text
    return found


def naming(folder: Path, name: str = NAME) -> list[str]:
    return [file for file, text in written(folder).items() if name in text]


def test_no_name_is_in_what_a_build_writes(source, run, tmp_path, capsys):
    result = run(["build", source, tmp_path / "out"])
    assert result.returncode == 1 and NAME not in result.stdout + result.stderr
    assert naming(tmp_path / "out") == []
    info = run(["info", tmp_path / "out"]).stdout
    # The command that shows the texts is named, and does: labels and units of refused recordings, and texts of scorings.
    (told,) = [line for line in result.stdout.splitlines() if "are digests here" in line]
    assert re.search(r"`(.+?)`", told)[1] == f"sleepfm doctor {source} --headers" and "sleepfm doctor SRC --headers" in info
    assert sleepfm(["doctor", str(source), "--headers"]) == 1
    shown = capsys.readouterr().out
    assert all(text in shown for text in (f"'{NAME} a'", f"'{NAME}s'", repr(NOTE), f"'Sleep stage {NAME}'", f"apnea? {NAME}"))
    # What is there instead, and what is standard as it was.
    assert digest_of(NOTE, "unknown") in info and digest_of(f"Patient {NAME} coughs", "note") in info
    assert "'Unsure' 1" in info and "'Lights off' 1" in info
    assert f"unknown stage texts: {digest_of(f'Sleep stage {NAME}', 'text')} (1)" in info
    assert run(["verify", tmp_path / "out"]).returncode == 0

    dataset = Dataset.open(tmp_path / "out")
    events = unclear_events(dataset, ShardReader(dataset), dataset.names.index(f"{PLACE}annotated"))
    # The note lasts as events do, and nobody knows what it says.
    doubtful = {digest_of(f"apnea? {NAME}", "respiratory"), digest_of(NOTE, "unknown"), "Unsure"}
    assert {event.type for event in events} == doubtful
    # The same with a salt of one's own, which is not written either.
    salted = run(["build", source, tmp_path / "salted", "privacy.salt=Zyxwv"])
    assert salted.returncode == 1 and naming(tmp_path / "salted") == [] and naming(tmp_path / "salted", "Zyxwv") == []
    assert digest_of(NOTE, "unknown") not in run(["info", tmp_path / "salted"]).stdout


def test_texts_are_kept_where_they_are_asked_for(source, run, tmp_path):
    """And so the search above would find them."""
    assert run(["build", source, tmp_path / "out", "privacy.texts=keep"]).returncode == 1
    assert {"records.parquet", "quarantine.parquet", "shard-000000.tar", "shard-000000.json"} <= set(naming(tmp_path / "out"))
    assert "are digests here" not in run(["info", tmp_path / "out"]).stdout


def test_clock_times_and_names_of_files_are_left_out_where_that_is_asked_for(source, run, tmp_path):
    result = run(["build", source, tmp_path / "out", "privacy.names=digest", "privacy.clock=drop"])
    assert result.returncode == 1
    assert naming(tmp_path / "out", PLACE) == [] and PLACE not in result.stdout
    records = pq.read_table(tmp_path / "out" / "manifest" / "records.parquet").to_pylist()
    assert all(json.loads(record["provenance"])["clock"] is None for record in records)
    assert len({record["subject"] for record in records}) == len(records)
    # It goes on, with nothing to do.
    again = run(["build", source, tmp_path / "out", "privacy.names=digest", "privacy.clock=drop"])
    assert "starting Ray" not in again.stdout and again.returncode == 1
    assert run(["verify", tmp_path / "out"]).returncode == 0


def test_no_name_is_in_what_scoring_and_embedding_write(source, tmp_path, capsys):
    models = [str(RELEASED / "stage"), str(RELEASED / "apnea")]
    recordings = [str(source / f"{PLACE}{name}.edf") for name in ("annotated", "nsrr", "listed", "stage", "start")]
    assert sleepfm(["score", *recordings, "--model", *models, "--out", str(tmp_path / "scored")]) == 0
    assert NAME in capsys.readouterr().out  # the user's own terminal
    assert len(written(tmp_path / "scored")) >= 7 and naming(tmp_path / "scored") == []
    sleepfm(["embed", str(source), "--model", str(RELEASED / "encoder"), "--out", str(tmp_path / "e.parquet")])
    assert naming(tmp_path / "e.parquet") == []
    epochs = pq.read_table(tmp_path / "e.parquet", columns=["record", "epoch"]).to_pandas().groupby("record")["epoch"].apply(list)
    assert len(epochs) and all(numbers == [*range(1, len(numbers) + 1)] for numbers in epochs)  # from 1, as in every file


@pytest.mark.parametrize("text", [NOTE, f"'{NAME}", f'"{NAME}', f'{NAME}\'s "x" \\', f"a\n{NAME}", f"it's '{NAME}'"])
def test_a_message_loses_what_it_quotes(text):
    message = f"night's.edf: the cohort's signal {text!r} (signal 3) and 'EEG C3-A2' are no 'Unsure' of {text.encode()!r}"
    kept = without_texts(message)
    assert NAME not in kept and "signal text-" in kept and "'EEG C3-A2' are no 'Unsure' of text-" in kept
    assert kept.startswith("night's.edf: the cohort's signal ")


@pytest.mark.parametrize("odd", ["\0", "\n", "\udcff"], ids=["null", "line", "no UTF-8"])
def test_what_no_repr_would_quote_is_lost_as_well(odd):
    """A name of a file may hold bytes that are no text."""
    assert NAME not in without_texts(f"night.edf: the signal '{NAME}{odd}' is not known")


def test_digests_are_counted_as_the_texts_were():
    """Whatever the digits are."""
    for number in range(2000):
        counts = TextCounts()
        scoring = {"ignored": {digest_of(str(number), "unknown"): 1, digest_of(str(number), "note"): 2}}
        counts.add("a", {"scoring": scoring})
        assert counts.not_understood() == [f"not understood, without effect: '{digest_of(str(number), 'unknown')}' 1"]


def test_a_message_loses_times_and_the_names_of_other_files():
    privacy = load_build_config(None, ["privacy.names=digest", "privacy.clock=drop"]).privacy
    message = "Ms Smith 2.csv: its times from 22:30:05 may be of day; see SC4001EC-Hypnogram.edf, and a/b.edf"
    kept = kept_message(message, "a/b.edf", privacy)
    assert "Smith" not in kept and "SC4001" not in kept and "22:30" not in kept and "may be of day; see a file, and " in kept


def test_scorings_that_are_not_used_for_one_reason_are_one_line():
    """Which names no file twice; the reason may be a long sentence."""
    why = "not a table with a title row that names onset and stage or event; convert it"
    found = TextCounts()
    for number in range(30):
        found.add(f"A/P{number:02}.edf", {"scoring_refused": f"tables/P{number:02} x.csv: {why}"})
    found.add("B/Q.edf", {"scoring_refused": "B/Q.edf: event table Q.csv is longer than the recording of 900.0 s"})
    assert found.lines() == [
        f"scoring not used: 30 recordings (A/P00.edf, A/P01.edf, A/P02.edf and 27 more): {why}",
        "scoring not used: B/Q.edf: event table Q.csv is longer than the recording of 900.0 s",
    ]
    # A line each for what differs, up to a number, and no recording goes uncounted.
    for number in range(40):
        found.add(f"C/{number}.edf", {"scoring_refused": f"C/{number}.edf: {number} epochs too long"})
    assert len(found.lines()) == 21 and found.lines()[-1] == "scoring not used: 22 recordings more"


def test_a_cohorts_own_name_stays_in_a_refusal(tmp_path):
    """It is the user's name for a file of rules; what the recording says are digests."""
    path = write_edf(tmp_path / "P1.edf", [Made("Erika M.", noise(6000), 100)])
    rules = tmp_path / "c.yaml"
    rules.write_text("extends: generic.yaml\nname: schlaflabor nord\nsource: x\n")
    with pytest.raises(MontageError) as caught:
        require_channels(examine(path, load_cohort(str(rules))))
    kept = kept_message(str(caught.value), "P1.edf", load_build_config().privacy)
    assert "by the rules of cohort schlaflabor nord among 1 signal (text-" in kept and "Erika" not in kept
