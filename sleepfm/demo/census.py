"""How many recordings and people of a folder each split would have, told before anything is built, and whether that is enough."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from shards.build_config import BuildConfig, chosen_cohort
from shards.people import Tables
from shards.split import split_of
from sleepfm.constants import CHANNEL_MODALITY, SPLITS
from sleepfm.errors import DatasetError, SleepFMError
from sleepfm.signals.cohorts.identity import check_identity
from sleepfm.signals.discover import discover
from sleepfm.signals.examine import Examination, examine, require_channels
from sleepfm.signals.files import is_folder
from sleepfm.signals.record_names import names_below
from sleepfm.signals.recording import read_recording
from sleepfm.signals.scorings.labels import stage_labels
from sleepfm.wording import counted, for_number

# Splits that jobs take labels from: they train on `label`, select on `val` and report on `test`.
LABELLED = ("label", "val", "test")


@dataclass
class SplitCount:
    """Recordings, those with a scoring, the people of both, and the modalities of each that is needed."""

    recordings: int = 0
    people: set[str] = field(default_factory=set)
    scored: int = 0
    scored_people: set[str] = field(default_factory=set)
    with_events: set[str] = field(default_factory=set)
    modalities: set[str] = field(default_factory=set)


@dataclass
class Census:
    """What the headers and scorings of a folder say; signals are read by the build, which may refuse more."""

    splits: dict[str, SplitCount] = field(default_factory=lambda: {name: SplitCount() for name in SPLITS})
    refused: int = 0
    unlisted: dict[str, str] = field(default_factory=dict)

    def add(self, examination: Examination, split: str) -> None:
        """Count a recording that can be used."""
        count, person = self.splits[split], examination.identity.subject
        count.recordings += 1
        count.people.add(person)
        count.modalities |= {CHANNEL_MODALITY[name] for name in examination.montage.channels}
        scoring = examination.scoring
        if scoring is not None and (stage_labels(scoring, examination.n_epochs) >= 0).any():
            count.scored += 1
            count.scored_people.add(person)
            if scoring.has_events:
                count.with_events.add(person)

    def lines(self) -> list[str]:
        """The table, and what is needed."""
        lines = [f"{'split':<9} recordings  people    with a scoring  people    with breathing events, people"]
        for name, count in self.splits.items():
            lines.append(
                f"{name:<9} {count.recordings:>10} {len(count.people):>7} {count.scored:>17} {len(count.scored_people):>7} "
                f"{len(count.with_events):>32}"
            )
        usable = sum(count.recordings for count in self.splits.values())
        scored = sum(count.scored for count in self.splits.values())
        without = f"{usable - scored} of them {for_number(usable - scored, 'has')} no scoring"
        lines.append(f"{counted(usable, 'recording')} can be used, {without}; {self.refused} would be refused")
        lines += [f"{folder}: {why}; what is in it is not counted" for folder, why in self.unlisted.items()]
        lines.append(
            "needed at least: a person in pretrain, and a person with a scoring of stages and breathing events in each of "
            f"{_and(LABELLED)}"
        )
        return lines

    def check(self, modalities: tuple[str, ...]) -> None:
        """Raises :class:`DatasetError` where the splits are not enough for one model of each of ``modalities`` and each task."""
        lacking = ["pretrain has no recording"] * (not self.splits["pretrain"].recordings)
        for name in LABELLED:
            count = self.splits[name]
            if not count.recordings:
                lacking.append(f"{name} has no recording")
            elif not count.scored:
                lacking.append(f"{name} has no recording with a scoring")
            elif not count.with_events:
                lacking.append(f"{name} has no recording with breathing events scored")
        for name, count in self.splits.items():
            missing = [modality for modality in modalities if modality not in count.modalities]
            if count.recordings and missing:
                lacking.append(f"{name} has no recording with {_and(missing)}")
        if lacking:
            raise DatasetError(
                f"too few recordings for the demo: {'; '.join(lacking)}. Add recordings or scorings, or draw the splits again "
                "with another word: `make demo SALT=word`, or --salt word"
            )


def take_census(folder: Path, config: BuildConfig) -> Census:
    """Look at the headers and scorings of the recordings below ``folder`` as a build by ``config`` will.

    Raises:
        RecordingError: no recording there.
        ConfigError: the cohort is not known, or its identity pattern fits no recording.
        SubjectTableError: a table of people cannot be used.
    """
    from tqdm import tqdm

    rules = chosen_cohort(config)
    census = Census()
    found = discover(folder, rules, unlisted=census.unlisted)
    names = names_below(found, folder)
    check_identity((name.path for name in names.values()), rules)
    root = folder if is_folder(folder) else None
    # Relatives come into one split.
    families = Tables.read(folder, config, move=False).known.families
    with tqdm(total=len(found), desc="census", unit="recording", disable=None) as progress:
        # Not through the bar, which has no types: what it gives would be taken for anything.
        for path, known in found.items():
            progress.update()
            try:
                known.check(str(path))
                recording = read_recording(path, known.header)
                examination = examine(recording, rules, root, known.scoring, config.scoring, names[path])
                require_channels(examination, config.require)
            except SleepFMError:
                # The doctor says why, and so does the build.
                census.refused += 1
                continue
            subject = examination.identity.subject
            census.add(examination, split_of(families.get(subject) or subject, config.split))
    return census


def _and(names: tuple[str, ...] | list[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
