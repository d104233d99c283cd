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
        description="Labels of the signal; any of them fits. Case, spaces and punctuation do not matter.",
        examples=[["EEG(sec)", "EEG sec"]],
    )
    electrodes: tuple[str, ...] = Field(
        default=(),
        description="Instead of `signal`: what a label means, in any spelling. A derivation (`C3-M2`), or an electrode whose "
        "reference is not named (`C3`). Labels that another channel lists under `signal` are not used.",
        examples=[["C3-M2"]],
    )
    occurrence: int | None = Field(
        default=None,
        ge=1,
        description="If several signals have the same label, which of them is used, counted from 1 in the order of the file.",
        examples=[2],
    )
    reference: tuple[tuple[str, ...], ...] = Field(
        default=(),
        description="Electrodes to subtract, each as a list of its labels (or of what they mean, in a rule with `electrodes`). "
        "The mean of several electrodes is subtracted.",
        examples=[[["M2", "A2"]]],
    )
    reference_occurrence: int | None = Field(
        default=None, ge=1, description="As `occurrence`, for the signals to subtract.", examples=[2]
    )
    derivation: str = Field(
        default="",
        description="Electrode and reference of the resulting channel. It is stored with the data. Inverted polarity can be "
        "found only if the reference is a mastoid or ear (M1, M2, A1, A2, linked mastoids).",
        examples=["C4-M1"],
    )
    substitute: str = Field(
        default="",
        description="If the derivation is not the standard one: why it is used instead.",
        examples=["ipsilateral mastoid"],
    )
    unit: str = Field(default="", description="The documented unit. It is used only if the header has none.", examples=["uV"])
    invert: bool = Field(
        default=False,
        description="Turn the signal over, because the recorder is documented to write it upside down.",
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
    """A pattern of the file name and labels; both must fit."""

    name: str = Field(description="A regular expression that is searched for in the file name.", examples=["^lake-"])
    labels: tuple[str, ...] = Field(description="Labels that must all be in the recording.", examples=[["C3", "A2"]])

    @field_validator("name")
    @classmethod
    def _compiles(cls, value: str) -> str:
        return _expression(value)


class Recognise(Config):
    """How `auto` recognises the cohort: by a pattern of the file name, or by labels that the recording must have."""

    name: str = Field(
        default="",
        description="A regular expression that is searched for in the file name. It must fit only files of this cohort.",
        examples=["^lake-\\d+-\\d"],
    )
    labels: tuple[str, ...] = Field(
        default=(),
        description="Labels that occur together only in this cohort. A recording with all of them belongs to it.",
        examples=[["Ch 3 C4/M1", "Ch 5 submental"]],
    )
    both: tuple[NameAndLabels, ...] = Field(
        default=(), description="Pairs of a name and labels, if neither is enough alone. One pair that fits is enough."
    )

    @field_validator("name")
    @classmethod
    def _compiles(cls, value: str) -> str:
        return _expression(value)


class IdentityRule(Config):
    """Which part of a file's name or path is the person. All nights of a person are put into the same split."""

    pattern: str = Field(
        default="",
        description="A regular expression that is searched for in the file name (with its ending); if it contains a slash, in "
        "the path below the folder of recordings, with slashes between the folders: `^(?P<subject>[^/]+)/` for one folder per "
        "person. It must have a group `subject` around the person, and may have a group `visit` around the night. A file that it "
        "does not fit counts as a separate person, and doctor and build warn of it; files of one folder that differ only in the "
        "ending, such as `a.edf` and `a.bdf`, count as one person. A pattern that fits no file is an error.",
        examples=["^(?P<subject>P\\d+)_night(?P<visit>\\d+)"],
    )
    prefix: str = Field(
        default="",
        description="Text that is put before `subject`, so that equal numbers in two cohorts are different people.",
        examples=["lakeside-"],
    )

    @field_validator("pattern")
    @classmethod
    def _names_a_subject(cls, value: str) -> str:
        if value and "subject" not in re.compile(_expression(value)).groupindex:
            raise ValueError("has no group `subject`; put (?P<subject>...) around the part that names the person")
        return value


class ScoringRules(GrowingSection):
    """Where the scoring of a recording is, what its words mean, and what to do if its length differs from the recording's."""

    _LATER = ("columns", "stages", "shorter")

    files: tuple[str, ...] = Field(
        default=(),
        description="Patterns of the scoring file, in order of preference, with `*`, `?` and `[...]` and the placeholders "
        "`{stem}`, `{folder}` and `{key}`. A pattern without a slash is searched for in the recording's folder, a pattern with a "
        "slash also in the folders above it.",
        examples=[["findings/{stem}_findings.csv", "{stem}.xml"]],
    )
    key: str = Field(
        default="",
        description="A regular expression. `{key}` is replaced by what it matches in the name of the recording. If it does not "
        "match, patterns with `{key}` are skipped.",
        examples=["^sub-\\d+_ses-\\d+"],
    )
    same_header: str = Field(
        default="",
        description="A pattern of annotation files (EDF+) beside the recording. A file belongs to the recording if patient and "
        "start are the same.",
        examples=["*-Hypnogram.edf"],
    )
    longer: Literal["cut", "error"] = Field(
        default="error",
        description="What to do with a scoring that ends more than an epoch after the recording: use it up to the end of the "
        "recording (`cut`), or do not use it (`error`).",
        examples=["cut"],
    )
    shorter: Literal["keep", "error"] = Field(
        default="error",
        description="What to do with a scoring that ends more than an epoch before the recording: use it and leave the rest "
        "unscored (`keep`), or do not use it (`error`). Only for formats with a code for every epoch; formats with onsets may "
        "always end earlier.",
        examples=["keep"],
    )
    columns: dict[str, Literal[COLUMNS]] = Field(  # type: ignore[valid-type]
        default_factory=dict,
        description="What the columns of a scoring table contain, by their titles, if the titles are the laboratory's own.",
        examples=[{"Begin of finding (s)": "onset", "Finding": "event"}],
    )
    stages: dict[str, Literal[STAGE_WORDS]] = Field(  # type: ignore[valid-type]
        default_factory=dict,
        description="The laboratory's own words for stages. Case and punctuation do not matter.",
        examples=[{"dream": "REM", "lamp on": "unscored"}],
    )
    events: dict[str, str] = Field(
        default_factory=dict,
        description="The laboratory's own words for events. Case and punctuation do not matter. Types "
        f"are {_sentence(EVENT_TYPES, '`%s`')}. `unclear` is for a respiratory text of unknown meaning: its epochs get no label "
        "for apnea and hypopnea.",
        examples=[{"shallow breathing": "hypopnea"}],
    )
    events_lost: str = Field(
        default="",
        description="A regular expression for names of recordings or scoring files. Their scorings are documented to have lost "
        "events; all their events count as not scored.",
        examples=["^lake-(12|15)-1"],
    )
    stages_wrong: str = Field(
        default="",
        description="A regular expression for names of recordings or scoring files. Their stages are documented to be wrong; "
        "their scorings are not used.",
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
    """Pass band of a channel's filter. Without `low` it is a low-pass filter, without `high` a high-pass, without both none."""

    low: float | None = Field(default=None, description="Lower edge in Hz.", examples=[0.5])
    high: float | None = Field(default=None, description="Upper edge in Hz.", examples=[40])


class QualityLimits(Config):
    """Limits for the quality flags of a channel's epochs, in its unit (uV, mV, %)."""

    flat: float | None = Field(
        default=None, description="A second is flat if it varies by no more than this from peak to peak.", examples=[2]
    )
    flat_epochs: int = Field(
        default=1,
        ge=1,
        description="For breathing: a channel is flat if it has no amplitude in this many epochs in a row. Apneas are shorter.",
        examples=[10],
    )
    floor: float = Field(
        default=0.0,
        ge=0,
        description="A second is flat if its standard deviation after the filter is below this. A channel whose interquartile "
        "range over the night is below it is missing. 0 means no limit.",
        examples=[1],
    )
    range: float | None = Field(
        default=None, description="A sample further than this from the night's middle is out of range.", examples=[500]
    )
    low: float | None = Field(
        default=None, description="Values below this mean that the sensor is off (oximetry).", examples=[51]
    )
    mains: bool = Field(default=False, description="Whether to look for mains at 50 or 60 Hz.", examples=[True])
    pickup: float | None = Field(
        default=None,
        description="If there is almost nothing but mains with at least this root mean square, the electrode is off.",
        examples=[50],
    )


class Cohort(Config):
    """The rules of one cohort."""

    example = "cohorts/generic.yaml"
    begin_with = "cohorts/defaults.yaml"
    name: str = Field(description="The cohort's name, as it is stored with each recording.", examples=["lakeside"])
    source: str = Field(
        description="Where the rules come from, in words: a manual, a page, a colleague.",
        examples=["export manual of the Lakeside sleep laboratory"],
    )
    recognise: Recognise = Field(default=Recognise(), description="How `--cohort auto` recognises this cohort.")
    identity: IdentityRule = Field(default=IdentityRule(), description="Which part of a file's name or path is the person.")
    scoring: ScoringRules = Field(default=ScoringRules(), description="Where scorings are, and what their words mean.")
    channels: dict[Channel, tuple[ChannelRule, ...]] = Field(
        description="For each canonical channel, rules for making it, in order of preference. The first that fits is used. They "
        "replace all rules that an extended file has for the channel."
    )
    minimum_rate: dict[Channel, float] = Field(
        description="Least sampling rate in Hz. Signals with a lower rate are not used.", examples=[{"EMG_CHIN": 60}]
    )
    filters: dict[Channel, Band] = Field(description="Pass band of each channel.")
    quality: dict[Channel, QualityLimits] = Field(description="Limits for the quality flags of each channel.")
    polarity: dict[Channel, KnownPolarity] = Field(
        default_factory=dict,
        description="What is documented about polarity: all recordings are inverted (`inverted`), some are (`mixed`), none is "
        "(`upright`). A channel that is left out is `unknown`.",
        examples=[{"EEG_C4": "inverted"}],
    )
    subjects: tuple[SubjectTable, ...] = Field(
        default=(),
        description="Tables with facts about people: age, sex, family. The first table with a value counts.",
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
