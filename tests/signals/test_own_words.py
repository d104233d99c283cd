"""Titles and stages of a laboratory's own, said in its cohort file, in every format that has words."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_edf import Made, noise, tal, write_edf

from sleepfm.config import load_config
from sleepfm.errors import AnnotationError, ConfigError, StageTextError
from sleepfm.signals.cohorts.catalogue import load_cohort
from sleepfm.signals.cohorts.cohort import Cohort, rules_digest
from sleepfm.signals.examine import examine
from sleepfm.signals.scorings.labels import stage_labels

HEAD = "extends: generic.yaml\nname: lab\nsource: test\n"
COLUMNS = '  columns: {"Begin of finding (s)": onset, Lasting: duration, Finding: event, Phase: stage, Nr: epoch}\n'
STAGES = "  stages: {awake: W, dozing: N1, dream: REM, lamp on: unscored}\n"
EXPECTED = [0, 1, 4, -1]
WORDS = ("awake", "Dozing", "DREAM", "lamp on")


def stages(folder: Path, name: str, text: str, rules: str = COLUMNS + STAGES) -> list[int]:
    """Stages of a recording of two minutes by the scoring ``name`` beside it."""
    (folder / "lab.yaml").write_text(f"{HEAD}scoring:\n  files: ['{{stem}}.*[vtl]']\n{rules}")
    (folder / name).write_text(text, encoding="utf-8")
    night = write_edf(folder / "night.edf", [Made("C4-M1", noise(200 * 120), 200)])
    found = examine(night, load_config(Cohort, folder / "lab.yaml"), use="require")
    assert found.scoring is not None
    return stage_labels(found.scoring, 4).tolist()


def rows(delimiter: str, titles: tuple[str, str, str]) -> str:
    table = [titles, *((f"{30 * place}", "30", word) for place, word in enumerate(WORDS))]
    return "\n".join(delimiter.join(row) for row in table) + "\n"


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("titles", [("Begin of finding (s)", "Lasting", "Finding"), ("begin of finding", "LASTING (s)", "Phase")])
def test_a_table_with_own_titles_and_words(tmp_path, delimiter, titles):
    assert stages(tmp_path, "night.csv", rows(delimiter, titles)) == EXPECTED
    # Below lines of the program's own.
    assert stages(tmp_path, "night.csv", f"Lakeside{delimiter} 2.1\n\n{rows(delimiter, titles)}") == EXPECTED


def test_a_unit_behind_an_own_title_counts(tmp_path):
    minutes = "Begin of finding [min];Lasting;Finding\n0;30;awake\n0.5;30;Dozing\n1;30;DREAM\n1.5;30;lamp on\n"
    assert stages(tmp_path, "night.csv", minutes) == EXPECTED


def test_lists_and_numbered_epochs(tmp_path):
    assert stages(tmp_path, "night.csv", "\n".join([*WORDS, ""])) == EXPECTED
    assert stages(tmp_path, "night.csv", "Nr,Phase\n1,awake\n2,dozing\n3,dream\n4,lamp on\n") == EXPECTED
    # A laboratory that counts from 1; the numbers of epochs are none of its stages.
    counted = "  columns: {Nr: epoch, Phase: stage}\n  stages: {'1': W, '2': N1, '6': REM, '9': unscored}\n"
    assert stages(tmp_path, "night.csv", "Nr,Phase\n1,1\n2,2\n3,6\n4,9\n", counted) == EXPECTED


def test_quoted_cells_stay_whole(tmp_path):
    own = '  columns: {"Begin, in s": onset, Lasting: duration, Finding: event}\n  stages: {"awake, quiet": W, dream: REM}\n'
    text = '"Begin, in s",Lasting,Finding\n0,30,"awake, quiet"\n30,30,dream\n60,60,N2\n35,5,"note, of somebody"\n'
    assert stages(tmp_path, "night.csv", text, own) == [0, 4, 2, 2]


def test_luna_and_nsrr_and_edf_annotations(tmp_path):
    annot = "class\tinstance\tchannel\tstart\tstop\tmeta\n" + "".join(
        f"{word}\t.\t.\t{30 * place}\t{30 * place + 30}\t.\n" for place, word in enumerate(("awake", "dozing", "N2", "dream"))
    )
    assert stages(tmp_path, "night.annot", annot, STAGES) == [0, 1, 2, 4]
    (tmp_path / "night.annot").unlink()
    event = (
        "<ScoredEvent><EventType>Stages</EventType><EventConcept>{}</EventConcept><Start>{}</Start><Duration>30</Duration>"
        "</ScoredEvent>"
    )
    events = "".join(event.format(word, 30 * place) for place, word in enumerate(WORDS))
    xml = f"<PSGAnnotation><EpochLength>30</EpochLength><ScoredEvents>{events}</ScoredEvents></PSGAnnotation>"
    assert stages(tmp_path, "night.xml", xml, STAGES) == EXPECTED
    (tmp_path / "night.xml").unlink()
    stamps = [tal(f"+{30 * place}") + tal(f"+{30 * place}", "30", word) for place, word in enumerate(WORDS)]
    signals = [Made("C4-M1", noise(200 * 120), 6000)]
    inside = write_edf(tmp_path / "inside.edf", signals, seconds="30", variant="EDF+C", stamps=stamps)
    found = examine(inside, load_config(Cohort, tmp_path / "lab.yaml"), use="require")
    assert found.scoring is not None and stage_labels(found.scoring, 4).tolist() == EXPECTED


def test_without_the_words_the_message_says_where_they_go(tmp_path):
    with pytest.raises(StageTextError, match=r"'DREAM' \(1\).*say in a cohort file what they mean \(scoring: \{stages: "):
        stages(tmp_path, "night.csv", rows(",", ("onset", "duration", "stage")), "  stages: {awake: W, dozing: N1}\n")
    with pytest.raises(AnnotationError, match=r"say in a cohort file what its columns mean \(scoring: \{columns: "):
        stages(tmp_path, "night.csv", rows(",", ("Anfang", "Dauer", "Befund")), STAGES)


def test_a_wrong_word_is_an_error_and_rules_without_words_keep_their_digest(tmp_path):
    with pytest.raises(ConfigError, match=r"scoring\.stages\.dream.*'W', 'N1', 'N2', 'N3', 'REM' or 'unscored' \(found 'R'\)"):
        stages(tmp_path, "night.csv", "W\n", "  stages: {dream: R}\n")
    generic = load_cohort("generic")
    assert not {"stages", "columns"} & generic.model_dump()["scoring"].keys()
    (tmp_path / "lab.yaml").write_text(f"{HEAD}scoring:\n{STAGES}")
    assert rules_digest(load_config(Cohort, tmp_path / "lab.yaml")) != rules_digest(
        load_config(Cohort, tmp_path / "lab.yaml").model_copy(update={"scoring": generic.scoring})
    )


def test_a_title_that_no_table_has_is_named_with_those_that_are_there(tmp_path):
    told = r"no title 'Foo', which `columns` of the cohort file names; its titles are 'onset', 'duration', 'event'"
    write_edf(tmp_path / "night.edf", [Made("C4-M1", noise(200 * 120), 200)])
    (tmp_path / "lab.yaml").write_text(f"{HEAD}scoring:\n  columns: {{Foo: onset}}\n")
    (tmp_path / "night.csv").write_text(rows(",", ("onset", "duration", "event")).replace("lamp on", "N2").replace("awake", "W"))
    # In the reason where the scoring cannot be used, else in its warnings.
    with pytest.raises(StageTextError, match=told):
        examine(tmp_path / "night.edf", load_config(Cohort, tmp_path / "lab.yaml"), use="require")
    (tmp_path / "night.csv").write_text("onset,duration,event\n0,120,N2\n")
    found = examine(tmp_path / "night.edf", load_config(Cohort, tmp_path / "lab.yaml"), use="require").scoring
    assert found is not None and found.warnings == ("the table has " + told,)
    (tmp_path / "night.csv").write_text("Beginn;Dauer;Befund\n0;120;N2\n")
    with pytest.raises(AnnotationError, match=r"no title 'Foo'.*its titles are 'Beginn', 'Dauer', 'Befund'"):
        examine(tmp_path / "night.edf", load_config(Cohort, tmp_path / "lab.yaml"), use="require")


@pytest.mark.parametrize("order", [("stages", "events"), ("events", "stages")])
def test_of_stages_and_events_in_two_files_the_one_that_is_not_read_is_named(tmp_path, order):
    write_edf(tmp_path / "night.edf", [Made("C4-M1", noise(200 * 120), 200)])
    (tmp_path / "night_stages.csv").write_text("epoch,stage\n1,N2\n2,N2\n3,N2\n4,R\n")
    (tmp_path / "night_events.csv").write_text("onset,duration,event\n65,20,Hypopnea\n")
    (tmp_path / "lab.yaml").write_text(f"{HEAD}scoring:\n  files: ['{{stem}}_{order[0]}.csv', '{{stem}}_{order[1]}.csv']\n")
    found = examine(tmp_path / "night.edf", load_config(Cohort, tmp_path / "lab.yaml"))
    told = " ".join(found.scoring.warnings) if found.scoring else found.scoring_refused
    assert f"'night_{order[1]}.csv' beside it is not read" in told
    (tmp_path / f"night_{order[1]}.csv").unlink()
    found = examine(tmp_path / "night.edf", load_config(Cohort, tmp_path / "lab.yaml"))
    assert "not read" not in " ".join(found.scoring.warnings if found.scoring else found.scoring_refused)
