"""What is known of a source of recordings: the rules in a cohort file."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from string import Formatter
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from sleepfm.config import Config, digest, to_dict
from sleepfm.constants import CHANNELS, EVENT_TYPES
from sleepfm.signals.cohorts.label_grammar import read_label

# What a cohort's text means of which no source says what its scorers meant by it.
UNCLEAR = "unclear"

KnownPolarity = Literal["inverted", "mixed", "unknown", "upright"]


# What is filled into patterns of scoring files.
_FIELDS = ("stem", "folder", "key")


def _sentence(names: Iterable[str], form: str = "%s") -> str:
    *first, last = [form % name for name in names]
    return f"{', '.join(first)} or {last}" if first else last


def _canonical(name: str) -> str:
    if name not in CHANNELS:
        raise ValueError(f"{name!r} is no channel; those are {_sentence(CHANNELS)}")
    return name


Channel = Annotated[str, AfterValidator(_canonical)]


def _expression(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"not a regular expression ({error})") from error
    return value


class ChannelRule(Config):
    """One way to make a canonical channel out of signals of a recording.

    Attributes:
        signal: labels of the active signal, any of them; compared without case, spaces and punctuation.
        electrodes: instead of labels, what they say in any spelling (:mod:`sleepfm.signals.cohorts.label_grammar`): derivations
            (``C3-M2``) or electrodes against a reference that is not named (``C3``). A label that a rule of another channel
            lists as its ``signal`` is that channel's and is not taken.
        occurrence: which of several signals that share one label is the active one, counted from 1 in the file's order.
        reference: electrodes to subtract, each with its labels (or, beside ``electrodes``, what these say); several are
            averaged (linked mastoids).
        reference_occurrence: as ``occurrence``, of the signals to subtract.
        derivation: what the result is, electrode and reference (``C4-A1``, ``E1-Fpz``), for the record and for polarity,
            which knows the sign of slow waves against a mastoid or ear only (M1, M2, A1, A2, linked mastoids).
        substitute: why this stands in for the canonical derivation, where it is not that derivation.
        unit: the documented unit, used only where the header leaves it empty.
        invert: turn the signal upside down, where the cohort's polarity is documented to be wrong.
    """

    signal: tuple[str, ...] = ()
    electrodes: tuple[str, ...] = ()
    occurrence: int | None = Field(default=None, ge=1)
    reference: tuple[tuple[str, ...], ...] = ()
    reference_occurrence: int | None = Field(default=None, ge=1)
    derivation: str = ""
    substitute: str = ""
    unit: str = ""
    invert: bool = False

    @model_validator(mode="after")
    def _one_of_both(self) -> ChannelRule:
        if bool(self.signal) == bool(self.electrodes):
            raise ValueError("give the labels of the signal as `signal`, or what they say as `electrodes`, one of both")
        if self.electrodes:
            for text in (*self.electrodes, *(text for texts in self.reference for text in texts)):
                if read_label(text) is None:
                    raise ValueError(f"{text!r} names no electrode or derivation that is known; list the labels as `signal`")
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Keys that came later are left out where a rule does not use them: the digest of its cohort stays what it was."""
        values: dict[str, Any] = handler(self)
        return {key: value for key, value in values.items() if value or key not in ("electrodes", "reference_occurrence")}


class NameAndLabels(Config):
    """A pattern of the file name, and labels that are all there beside it."""

    name: str
    labels: tuple[str, ...]

    @field_validator("name")
    @classmethod
    def _compiles(cls, value: str) -> str:
        return _expression(value)


class Recognise(Config):
    """How ``auto`` tells the cohort: by a pattern of the file name, or by labels that are all there.

    Attributes:
        name: a regular expression that only names of the cohort's files match.
        labels: as no other cohort has them together.
        both: for names and labels that are not enough alone, any of these pairs of a name and labels.
    """

    name: str = ""
    labels: tuple[str, ...] = ()
    both: tuple[NameAndLabels, ...] = ()

    @field_validator("name")
    @classmethod
    def _compiles(cls, value: str) -> str:
        return _expression(value)


class IdentityRule(Config):
    """Regular expression searched in the file name, with groups ``subject`` and, maybe, ``visit``.

    A file that does not match is its own subject, which doctor and build tell. ``subject`` is prefixed by ``prefix``, so that
    cohorts cannot share a subject by chance and two visits of one study do on purpose.
    """

    pattern: str = ""
    prefix: str = ""

    @field_validator("pattern")
    @classmethod
    def _names_a_subject(cls, value: str) -> str:
        if value and "subject" not in re.compile(_expression(value)).groupindex:
            raise ValueError("has no group `subject`; put (?P<subject>...) around what names the person")
        return value


class ScoringRules(Config):
    """Where the scoring of a recording is, and how its length is reconciled.

    Attributes:
        files: glob patterns relative to the recording's folder or a folder above it, in order of preference;
            ``{stem}`` is the file name without ending, ``{folder}`` the folder's name, ``{key}`` what ``key``
            matches in the file name (a pattern that names it is left out where it does not match).
        key: regular expression.
        same_header: annotation files beside the recording (a glob) that belong to it if patient and start agree.
        longer: what to do with a scoring that goes on for more than an epoch after the recording: ``cut`` it, so that epochs of
            the recording keep their stages and events, or refuse it as an ``error``.
        shorter: what to do with a scoring that gives every epoch of a night a code and ends more than an epoch before the
            recording: ``keep`` what it has, with the rest unscored, or refuse it as an ``error``. Formats with onsets may end
            before the recording.
        events: texts of the cohort's own that mean one of our types of event, compared without case and punctuation, or
            ``unclear`` for a respiratory text of which no source says what it means: its epochs are neither with nor without.
        events_lost, stages_wrong: regular expressions of names of recordings, or of scoring files, whose scorings are documented
            to have lost their events, which then count as not scored, or to have wrong stages, which are not used.
        unreliable: types of events that are documented to be so in all scorings of the cohort; they count as not scored.
    """

    files: tuple[str, ...] = ()
    key: str = ""
    same_header: str = ""
    longer: Literal["cut", "error"] = "error"
    shorter: Literal["keep", "error"] = "error"
    events: dict[str, str] = Field(default_factory=dict)
    events_lost: str = ""
    stages_wrong: str = ""
    unreliable: tuple[Literal[EVENT_TYPES], ...] = ()  # type: ignore[valid-type]

    @field_validator("files")
    @classmethod
    def _can_be_filled_in(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in value:
            try:
                fields = [item for item in Formatter().parse(pattern) if item[1] is not None]
            except ValueError as error:
                raise ValueError(f"{pattern!r} is no pattern ({error}); write {{{{ and }}}} for braces") from error
            for _, name, form, conversion in fields:
                if name not in _FIELDS or form or conversion:
                    raise ValueError(f"{pattern!r} asks for {{{name}}}; a pattern may ask for {_sentence(_FIELDS, '{%s}')}")
            if not pattern.strip() or pattern.startswith("/"):
                raise ValueError(f"{pattern!r} is no pattern relative to the recording's folder")
        return value

    @field_validator("events")
    @classmethod
    def _known_types(cls, value: dict[str, str]) -> dict[str, str]:
        for text, kind in value.items():
            if kind not in (*EVENT_TYPES, UNCLEAR):
                raise ValueError(f"{text!r} is to be {kind!r}, which is none of {_sentence((*EVENT_TYPES, UNCLEAR))}")
        return value

    @field_validator("key", "events_lost", "stages_wrong")
    @classmethod
    def _compiles(cls, value: str) -> str:
        return _expression(value)


class Band(Config):
    """Pass band in Hz; a missing edge is open, both missing is no filter."""

    low: float | None = None
    high: float | None = None


class QualityLimits(Config):
    """Per-epoch limits of a modality, in the canonical unit.

    Attributes:
        flat: peak to peak within a second, at or below which the second is flat.
        flat_epochs: epochs in a row from which on a channel without amplitude is flat; breathing pauses for less.
        floor: standard deviation within a second after the filter below which there is no signal of a person, and least
            interquartile range of a recording; 0 sets none.
        range: distance from the night's middle, beyond which a sample is out of range.
        low: value below which a sensor is off (oximetry).
        mains: whether to look for 50 or 60 Hz.
        pickup: root mean square of mains which, where there is hardly anything else, only an open input shows.
    """

    flat: float | None = None
    flat_epochs: int = Field(1, ge=1)
    floor: float = Field(0.0, ge=0)
    range: float | None = None
    low: float | None = None
    mains: bool = False
    pickup: float | None = None


class Cohort(Config):
    """One cohort's rules. Keys of the mappings below are canonical channels.

    ``polarity`` is what is documented of the recordings as they are distributed: ``inverted`` all, ``mixed`` in part,
    ``upright`` all, and ``unknown`` where a channel is left out (:mod:`sleepfm.signals.polarity`).
    """

    name: str
    source: str
    recognise: Recognise = Recognise()
    identity: IdentityRule = IdentityRule()
    scoring: ScoringRules = ScoringRules()
    channels: dict[Channel, tuple[ChannelRule, ...]]
    minimum_rate: dict[Channel, float]
    filters: dict[Channel, Band]
    quality: dict[Channel, QualityLimits]
    polarity: dict[Channel, KnownPolarity] = Field(default_factory=dict)


# Rules list a few hundred, and files repeat theirs.
@lru_cache(maxsize=4096)
def normalise_label(label: str) -> str:
    """A label without case, spaces and punctuation; a sign at its end stays, since ``ECG+`` is not ``ECG-``."""
    text = unicodedata.normalize("NFKC", label).casefold().strip()
    sign = text[-1:] if text[-1:] in ("+", "-") else ""
    return "".join(character for character in text if character.isalnum()) + sign


def rules_digest(cohort: Cohort) -> str:
    """Digest of what ``cohort`` makes of a recording: neither the prose of its source nor how recordings of it are known."""
    return digest({key: value for key, value in to_dict(cohort).items() if key not in ("source", "recognise")})
