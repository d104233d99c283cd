"""What is known of a source of recordings: the rules in a cohort file."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from string import Formatter
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from sleepfm.config import Config, digest, to_dict
from sleepfm.constants import CHANNELS, EVENT_TYPES
from sleepfm.signals.cohorts.label_grammar import read_label
from sleepfm.signals.cohorts.subject_rules import SubjectTable

# What a cohort's text means of which no source says what its scorers meant by it.
UNCLEAR = "unclear"

KnownPolarity = Literal["inverted", "mixed", "unknown", "upright"]


# What is filled into patterns of scoring files, and what with.
PLACEHOLDERS = {
    "stem": "the name of the recording without its ending: `P01_night1` for `nights/P01_night1.edf`",
    "folder": "the name of the recording's folder: `nights`",
    "key": "what the expression `scoring.key` matches in the name of the recording",
}
# What a scoring table's column may hold, and what stages are called, where a cohort says it of its own words.
COLUMNS = ("onset", "clock time", "elapsed time", "duration", "end", "epoch", "stage", "event")
STAGE_WORDS = ("W", "N1", "N2", "N3", "REM", "unscored")


def _sentence(names: Iterable[str], form: str = "%s") -> str:
    *first, last = [form % name for name in names]
    return f"{', '.join(first)} or {last}" if first else last


def _canonical(name: str) -> str:
    if name not in CHANNELS:
        raise ValueError(f"{name!r} is not a channel; the channels are {_sentence(CHANNELS)}")
    return name


Channel = Annotated[str, AfterValidator(_canonical)]


def _expression(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"not a regular expression ({error})") from error
    return value


class GrowingSection(Config):
    """A section to which keys are added while data sets of before must keep their digest."""

    _LATER: ClassVar[tuple[str, ...]] = ()
    """Keys that came later. They are left out where a rule does not use them."""

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        fields = type(self).model_fields
        unused = {key for key in self._LATER if getattr(self, key) == fields[key].get_default(call_default_factory=True)}
        return {key: value for key, value in values.items() if key not in unused}


class ChannelRule(GrowingSection):
    """One way to make a canonical channel out of signals of a recording."""

    _LATER = ("electrodes", "reference_occurrence")

    signal: tuple[str, ...] = Field(
        default=(),
        description="Labels of the active signal, any of them. They are compared without case, spaces and punctuation.",
        examples=[["EEG(sec)", "EEG sec"]],
    )
    electrodes: tuple[str, ...] = Field(
        default=(),
        description="Instead of labels, what they say in any spelling: derivations (`C3-M2`), or electrodes against a reference "
        "that is not named (`C3`). A label that a rule of another channel lists as its `signal` is not taken.",
        examples=[["C3-M2"]],
    )
    occurrence: int | None = Field(
        default=None,
        ge=1,
        description="Which of several signals of one label is the active one, counted from 1 in the order of the file.",
        examples=[2],
    )
    reference: tuple[tuple[str, ...], ...] = Field(
        default=(),
        description="Electrodes to subtract, each with its labels (beside `electrodes`, with what these say). Several are "
        "averaged.",
        examples=[[["M2", "A2"]]],
    )
    reference_occurrence: int | None = Field(
        default=None, ge=1, description="As `occurrence`, of the signals to subtract.", examples=[2]
    )
    derivation: str = Field(
        default="",
        description="What the result is, electrode and reference. It is kept with the data. The sign of slow waves is known, and "
        "polarity is decided by it, against a mastoid or ear only (M1, M2, A1, A2, linked mastoids).",
        examples=["C4-M1"],
    )
    substitute: str = Field(
        default="",
        description="Why this stands in for the canonical derivation, where it is another one.",
        examples=["ipsilateral mastoid"],
    )
    unit: str = Field(
        default="", description="The documented unit. It is used only where the header leaves it empty.", examples=["uV"]
    )
    invert: bool = Field(
        default=False,
        description="Turn the signal upside down, where the recorder is documented to write it so.",
        examples=[True],
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> ChannelRule:
        if bool(self.signal) == bool(self.electrodes):
            raise ValueError("give either `signal` (the labels) or `electrodes` (what the labels mean), not both")
        if self.electrodes:
            for text in (*self.electrodes, *(text for texts in self.reference for text in texts)):
                if read_label(text) is None:
                    raise ValueError(f"{text!r} names no electrode or derivation that is known; list the labels as `signal`")
        return self


class NameAndLabels(Config):
    """A pattern of the file name, and labels that are all there beside it."""

    name: str = Field(description="A regular expression that is searched in the file name.", examples=["^lake-"])
    labels: tuple[str, ...] = Field(description="Labels that are all there.", examples=[["C3", "A2"]])

    @field_validator("name")
    @classmethod
    def _compiles(cls, value: str) -> str:
        return _expression(value)


class Recognise(Config):
    """How `auto` tells the cohort: by a pattern of the file name, or by labels that are all there."""

    name: str = Field(
        default="",
        description="A regular expression that is searched in the file name and fits files of this cohort alone.",
        examples=["^lake-\\d+-\\d"],
    )
    labels: tuple[str, ...] = Field(
        default=(),
        description="Labels that no other cohort has together. A recording that has them all is of this cohort.",
        examples=[["Ch 3 C4/M1", "Ch 5 submental"]],
    )
    both: tuple[NameAndLabels, ...] = Field(
        default=(), description="For names and labels that are not enough alone: pairs of both, of which any is enough."
    )

    @field_validator("name")
    @classmethod
    def _compiles(cls, value: str) -> str:
        return _expression(value)


class IdentityRule(Config):
    """Which part of a file name is the person. All nights of a person come into the same split."""

    pattern: str = Field(
        default="",
        description="A regular expression that is searched in the file name (with its ending), with a group `subject` around the "
        "person and, maybe, a group `visit` around the night. A file that it does not fit counts as a person of its own, which "
        "doctor and build tell.",
        examples=["^(?P<subject>P\\d+)_night(?P<visit>\\d+)"],
    )
    prefix: str = Field(
        default="",
        description="Put before `subject`, so that two cohorts share a person only on purpose.",
        examples=["lakeside-"],
    )

    @field_validator("pattern")
    @classmethod
    def _names_a_subject(cls, value: str) -> str:
        if value and "subject" not in re.compile(_expression(value)).groupindex:
            raise ValueError("has no group `subject`; put (?P<subject>...) around the part that names the person")
        return value


class ScoringRules(GrowingSection):
    """Where the scoring of a recording is, what its own words mean, and how its length is reconciled."""

    _LATER = ("columns", "stages", "shorter")

    files: tuple[str, ...] = Field(
        default=(),
        description="Patterns of the scoring file, in order of preference, with `*`, `?` and `[...]`. A pattern without a slash "
        "is looked for in the recording's folder; one with a slash there and in the folders above it. It may hold the "
        "placeholders `{stem}`, `{folder}` and `{key}`.",
        examples=[["findings/{stem}_findings.csv", "{stem}.xml"]],
    )
    key: str = Field(
        default="",
        description="A regular expression. What it matches in the name of the recording is put in the place of `{key}`. Patterns "
        "that name `{key}` are left out where it does not match.",
        examples=["^sub-\\d+_ses-\\d+"],
    )
    same_header: str = Field(
        default="",
        description="A pattern of annotation files beside the recording. One belongs to it if patient and start agree.",
        examples=["*-Hypnogram.edf"],
    )
    longer: Literal["cut", "error"] = Field(
        default="error",
        description="What becomes of a scoring that goes on for more than an epoch after the recording: it is cut, so that the "
        "epochs of the recording keep their stages and events, or not used.",
        examples=["cut"],
    )
    shorter: Literal["keep", "error"] = Field(
        default="error",
        description="What becomes of a scoring that gives every epoch of a night a code and ends more than an epoch before the "
        "recording: what it has is kept and the rest is unscored, or it is not used. Formats with onsets may end before the "
        "recording.",
        examples=["keep"],
    )
    columns: dict[str, Literal[COLUMNS]] = Field(  # type: ignore[valid-type]
        default_factory=dict,
        description="Titles of a scoring table's columns, where they are the laboratory's own, and what stands below each.",
        examples=[{"Begin of finding (s)": "onset", "Finding": "event"}],
    )
    stages: dict[str, Literal[STAGE_WORDS]] = Field(  # type: ignore[valid-type]
        default_factory=dict,
        description="Texts of the laboratory's own that mean a stage, compared without case and punctuation.",
        examples=[{"dream": "REM", "lamp on": "unscored"}],
    )
    events: dict[str, str] = Field(
        default_factory=dict,
        description="Texts of the laboratory's own that mean a type of event, compared without case and punctuation; or "
        "`unclear` for a respiratory text of which no source says what it means: its epochs are neither with nor without. Types "
        f"are {_sentence(EVENT_TYPES, '`%s`')}.",
        examples=[{"shallow breathing": "hypopnea"}],
    )
    events_lost: str = Field(
        default="",
        description="A regular expression of names of recordings, or of scoring files, whose scorings are documented to have "
        "lost their events. These then count as not scored.",
        examples=["^lake-(12|15)-1"],
    )
    stages_wrong: str = Field(
        default="",
        description="A regular expression of names of recordings, or of scoring files, whose stages are documented to be wrong. "
        "Their scorings are not used.",
        examples=["^lake-17-2"],
    )
    unreliable: tuple[Literal[EVENT_TYPES], ...] = Field(  # type: ignore[valid-type]
        default=(),
        description="Types of events that are documented to be unreliable in all scorings of the cohort. They count as not "
        "scored.",
        examples=[["desaturation"]],
    )

    @field_validator("files")
    @classmethod
    def _can_be_filled_in(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in value:
            try:
                fields = [item for item in Formatter().parse(pattern) if item[1] is not None]
            except ValueError as error:
                raise ValueError(f"{pattern!r} is not a valid pattern ({error}); write {{{{ and }}}} for braces") from error
            for _, name, form, conversion in fields:
                if name not in PLACEHOLDERS or form or conversion:
                    raise ValueError(f"{pattern!r} uses {{{name}}}; a pattern can use {_sentence(PLACEHOLDERS, '{%s}')}")
            if not pattern.strip() or pattern.startswith("/"):
                raise ValueError(f"{pattern!r} is not a pattern relative to the folder of the recording")
        return value

    @field_validator("events")
    @classmethod
    def _known_types(cls, value: dict[str, str]) -> dict[str, str]:
        for text, kind in value.items():
            if kind not in (*EVENT_TYPES, UNCLEAR):
                raise ValueError(f"{text!r} is mapped to {kind!r}, which is not one of {_sentence((*EVENT_TYPES, UNCLEAR))}")
        return value

    @field_validator("key", "events_lost", "stages_wrong")
    @classmethod
    def _compiles(cls, value: str) -> str:
        return _expression(value)


class Band(Config):
    """Pass band of a channel's filter. A missing edge is open, both missing is no filter."""

    low: float | None = Field(default=None, description="Lower edge in Hz.", examples=[0.5])
    high: float | None = Field(default=None, description="Upper edge in Hz.", examples=[40])


class QualityLimits(Config):
    """Limits of an epoch of a channel, in its unit (uV, mV, %)."""

    flat: float | None = Field(
        default=None, description="Peak to peak within a second, at or below which the second is flat.", examples=[2]
    )
    flat_epochs: int = Field(
        default=1,
        ge=1,
        description="Epochs in a row from which on a channel without amplitude is flat. Breathing pauses for less.",
        examples=[10],
    )
    floor: float = Field(
        default=0.0,
        ge=0,
        description="Standard deviation within a second after the filter, below which there is no signal of a person, and least "
        "interquartile range of a recording. 0 sets none.",
        examples=[1],
    )
    range: float | None = Field(
        default=None, description="Distance from the night's middle, beyond which a sample is out of range.", examples=[500]
    )
    low: float | None = Field(default=None, description="Value below which a sensor is off (oximetry).", examples=[51])
    mains: bool = Field(default=False, description="Whether to look for mains at 50 or 60 Hz.", examples=[True])
    pickup: float | None = Field(
        default=None,
        description="Root mean square of mains that only an open input shows, where there is hardly anything else.",
        examples=[50],
    )


class Cohort(Config):
    """One cohort's rules."""

    name: str = Field(description="The cohort's name, as it is stored with each recording.", examples=["lakeside"])
    source: str = Field(
        description="Where the rules come from, in words: a manual, a page, a colleague.",
        examples=["export manual of the Lakeside sleep laboratory"],
    )
    recognise: Recognise = Field(default=Recognise(), description="How `--cohort auto` tells recordings of this cohort.")
    identity: IdentityRule = Field(default=IdentityRule(), description="Which part of a file name is the person.")
    scoring: ScoringRules = Field(default=ScoringRules(), description="Where scorings are, and what their own words mean.")
    channels: dict[Channel, tuple[ChannelRule, ...]] = Field(
        description="For each canonical channel the rules by which it is made, in order of preference. The first that fits "
        "counts. A channel that is given here replaces all rules that an extended file has for it."
    )
    minimum_rate: dict[Channel, float] = Field(
        description="Least sampling rate in Hz at which a signal can be the channel.", examples=[{"EMG_CHIN": 60}]
    )
    filters: dict[Channel, Band] = Field(description="Pass band of each channel.")
    quality: dict[Channel, QualityLimits] = Field(description="Limits by which epochs of each channel are flagged.")
    polarity: dict[Channel, KnownPolarity] = Field(
        default_factory=dict,
        description="What is documented of the recordings as they are distributed: `inverted` all, `mixed` in part, `upright` "
        "all; `unknown` where a channel is left out.",
        examples=[{"EEG_C4": "inverted"}],
    )
    subjects: tuple[SubjectTable, ...] = Field(
        default=(),
        description="Tables of what is known of people: age, sex, family. Of several, the first that has a value counts.",
    )


# Rules list a few hundred, and files repeat theirs.
@lru_cache(maxsize=4096)
def normalise_label(label: str) -> str:
    """A label without case, spaces and punctuation; a sign at its end stays, since ``ECG+`` is not ``ECG-``, and so does a minus
    right before it, since ``-C3-M2`` may be upside down."""
    text = unicodedata.normalize("NFKC", label).casefold().strip()
    sign = text[-1:] if text[-1:] in ("+", "-") else ""
    minus = "-" if text[:1] == "-" and text[1:2].isalnum() else ""
    return minus + "".join(character for character in text if character.isalnum()) + sign


def rules_digest(cohort: Cohort) -> str:
    """Digest of what ``cohort`` makes of a recording: neither the prose of its source nor how recordings of it are known, nor
    what is known of people."""
    return digest({key: value for key, value in to_dict(cohort).items() if key not in ("source", "recognise", "subjects")})
