"""Texts of stages and events as scoring programs write them, by R&K and AASM.

Compared without case, accents, spaces and punctuation, and with ae and oe as e (apnoea, hypopnoe). Sources: EDF+
specification (standard texts); NSRR's terms as Luna's documentation tabulates them (zzz.bwh.harvard.edu/luna/nsrr,
ref/hypnograms); the ontology terms of NSRR's edf-editor-translator (SDO: and SRO:); documentation of NCHSDB, STAGES, WSC
and APPLES at sleepdata.org; Noxturnal. Respiratory events in English, German, French, Spanish, Italian, Portuguese,
Dutch and Swedish.

A text is one of: a stage; an event; respiratory but not understood, so that nobody may call its epochs free of events
(:func:`is_respiratory`); known to say nothing of stages, apneas and hypopneas (:func:`is_beside_the_point`); unknown, which may
be an event where it lasts as events do (:mod:`sleepfm.signals.scorings.doubt`).
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from itertools import product

from sleepfm.constants import Stage

_STAGES = {
    Stage.W: "w wk wake awake eveil wach vigilia veglia stagew stagewk stagewake sleepstagew sleepstagewk sleepstagewake stage0 "
    "sleepstage0 wakefulness wakestate s0 sleeps0 sleepw sleepwake "
    "wakker eveilcalme eveilactif veille stadew stadeeveil schlafstadiumw stadiumw stadiumwach slaapw estadiow stadiow fasew",
    Stage.N1: "n1 1 s1 stage1 stagen1 stages1 sleepstage1 sleepstagen1 stage1sleep nrem1 stagenrem1 n1sleep "
    "nonrapideyemovementsleepn1 sleeps1 sleepn1 "
    "stade1 staden1 schlafstadium1 schlafstadiumn1 stadium1 stadiumn1 slaap1 slaapn1 estadio1 estadion1 stadio1 stadion1 "
    "fase1 fasen1",
    Stage.N2: "n2 2 s2 stage2 stagen2 stages2 sleepstage2 sleepstagen2 stage2sleep nrem2 stagenrem2 n2sleep "
    "nonrapideyemovementsleepn2 sleeps2 sleepn2 "
    "stade2 staden2 schlafstadium2 schlafstadiumn2 stadium2 stadiumn2 slaap2 slaapn2 estadio2 estadion2 stadio2 stadion2 "
    "fase2 fasen2",
    # Stages 3 and 4 of Rechtschaffen and Kales (1968) are one stage N3 in the AASM manual (2007).
    Stage.N3: "n3 3 4 s3 s4 n4 stage3 stage4 stagen3 stagen4 stages3 stages4 sleepstage3 sleepstage4 sleepstagen3 "
    "sleepstagen4 stage3sleep stage4sleep stage34sleep nrem3 nrem4 stagenrem3 n3sleep sws "
    "nonrapideyemovementsleepn3 nonrapideyemovementsleepn4 sleeps3 sleeps4 sleepn3 "
    "stade3 staden3 stade4 schlafstadium3 schlafstadiumn3 schlafstadium4 stadium3 stadiumn3 stadium4 tiefschlaf slaap3 slaapn3 "
    "sommeillentprofond sommeilprofond diepeslaap estadio3 estadion3 estadio4 stadio3 stadion3 stadio4 sonnoprofondo "
    "suenoprofundo fase3 fasen3 fase4",
    Stage.REM: "r rem stager sleepstager remsleep stagerem sleepstagerem paradoxal sp rapideyemovement rapideyemovementsleep "
    "sleeprem sleepr "
    "sommeilparadoxal sommeilrem stader staderem schlafstadiumr schlafstadiumrem stadiumr stadiumrem remschlaf "
    "traumschlaf slaapr slaaprem "
    "remslaap sonnorem suenorem sonorem estadior estadiorem stadior stadiorem faser faserem",
    Stage.UNSCORED: "? sleepstage? unscored unknown unknownstage unscorable notscored nonscore stageunscored "
    "sleepstageunscored sleepstageunknown stageunknown nostage stagenostage undefined mt movement movementtime "
    "sleepstagem sleepstagemt stagemt stagemvt stagemovement bodymovement sleepmt sleepunscored",
}
_NOUNS = {
    "apnea": "apnea apnee apne apneia apneu",
    "hypopnea": "hypopnea hypopnee hypopne hipopnea hipopneia ipopnea hypopneu",
}
_KINDS = {
    "obstructive": "obstructive obstruktive obstruktiv obstructiva ostruttiva obstrutiva obstructieve obs",
    "central": "central centrale zentrale zentral centralt cen",
    "mixed": "mixed mixte gemischte gemischt mixta mista gemengde",
}
_ENDINGS = ("", "s", "event", "sleepevent")
_EVENTS = {
    "obstructive_apnea": "aobstructive oapnea",
    "central_apnea": "acentral acentrale capnea",
    "mixed_apnea": "amixed amixte mapnea",
    "hypopnea": "hypopnea30 hypopnea50 hobstructive hcentral",
    "desaturation": "desaturation desat spo2desaturation spo2desat oxygendesaturation oxygendesaturationevent "
    "sao2desaturation o2desaturation o2desat oxyhemoglobindesaturation",
    "arousal": "microeveil rera arousalrera respiratoryeffortrelatedarousal",
}
# Labels of an epoch that are stages only in a list that has one for every epoch: elsewhere "lights" is a moment.
_EPOCH_UNSCORED = (
    "l",
    "lights",
    "lightson",
    "lightsoff",
    "m",
    "u",
    "missing",
    "unsure",
    "artifact",
    "artefact",
    "art",
    "na",
    "nan",
    "",
)
_STAGE_OF = {text: stage for stage, texts in _STAGES.items() for text in texts.split()}
# Of arousals every cohort has its own variants (spontaneous, respiratory, limb, PLM, ASDA, Cheshire, standard, EEG).
_NO_AROUSAL = re.compile(r"apn|hypopn|noarousal|withoutarousal|desat|artifact|confusional|disorder")
_PREFIX = re.compile(r"^\s*(sdo|sro)\s*:", re.IGNORECASE)
# Beginnings of a stage's name, in the languages above; a sleep apnea is none.
_STAGE_WORDS = re.compile(
    r"^(sleepstage|stage|stade|schlafstadium|stadium|estadio|stadio|sommeil|schlaf(?!mittel|position)|slaap|sonno|sueno)"
    r"(?!s?(shift|change)|.*a?pn[eo])"
)
# What "light", "delta" or "paradox" stands beside where it is a stage of some laboratory.
_SLEEP = re.compile(r"sleep|sommeil|schlaf|slaap|sonno|sueno|\bsono\b|\b(stade|stadi|estadio|eveil (calme|actif))")

# Apneas and hypopneas by their nouns (not capnography) and abbreviations; "Unsure" is the free tag of Profusion's scorers.
_BREATHS_MISSED = re.compile(
    r"(?<!c)apn|capne|ypop|ipopn|hipop|atempaus|atemstill|atemaus|atemereig|bezdech|апно|呼吸|通气|換気|"
    r"^unsure|^([ocm][ah]|[ocm]sa|hyp|ah)$"
)
_EVENT_WORD = re.compile(r"[\W_]events?\W*$", re.IGNORECASE)
# Words that say it in any text.
_BREATHLESS_WORD = re.compile(
    r"apn[eo]?\w*|[ocm]hyp|[ocm]sa|sdb|sah?os|osas|obstr\w*|ostrut\w*|centra(l|le|al|ls|lly)|zentral\w*|mixed|mixte|mi[sx]ta|"
    r"gemischt\w*|gemengd\w*"
)
# Words that say it where nothing else stands beside them but remarks, numbers and these.
_ABBREVIATIONS = frozenset(
    {
        *("oa", "ca", "ma", "oh", "ch", "mh", "ah", "sa", "a", "h", "ap", "ha", "hyp", "hyps", "hypo"),
        *("ob", "obs", "obst", "cen", "cent", "centr", "mix", "mx"),
    }
)
_ALONE_ONE_OF_MANY = frozenset({"a", "h", "ap", "ha", "sa"})
# What stands beside an abbreviation and leaves it one.
_BESIDE_AN_EVENT = re.compile(r"events?|sleep|s|sec|and|with|arousal|desat\w*|supine|prone|left|right|side|position|start|end")
# What misspelt words are compared with.
_SPELLINGS = ("apnea", "apnoea", "hypopnea", "hypopnoea")
_NEAR = 0.78
# Of a text, so many characters are read; those that mean something are shorter.
_READ = 200
_RESPIRATORY = re.compile(r"respir|^resp|breath|atmung|^atem|ademhal|flow|oddech|дыхан")
# What a text that is no event of theirs has to do with events beside breathing.
_MENTIONED = {
    "arousal": re.compile(r"arous|eveil|weckreakt|risvegl|wybudz|despert"),
    "desaturation": re.compile(r"desat|entsatt|satura"),
}

# What scorers and recorders write beside stages, apneas and hypopneas: beginnings of words, then whole words.
_BESIDE_THE_POINT = re.compile(
    r"\b(arousal|microarousal|eveil|microeveil|desat|art[ei]fa[ck]t|snor|schnarch|ronfl|ronqu|russa|snurk|light|licht|lumiere|"
    r"limb|leg|bein|jambe|plm|movement|mouvement|bewegung|position|posture|supine|prone|upright|left|right|"
    r"spindle|kcomplex|spike|seizure|sawtooth|alpha|delta|theta|eye|blink|brux|rems|"
    r"ecg|ekg|tachy|brady|asystol|arrhythm|fibrillat|heart|pulse|narrow|wide|"
    r"cpap|bipap|pressure|oxygen|spo2|sao2|o2|co2|etco2|tcco2|capno|"
    r"record|analys|start|stop|begin|calib|biocal|impedance|montage|video|audio|camera|marker|battery|sensor|electrode|"
    r"channel|filter|gain|signal|noise|cheyne|periodic|hypoventil|flow ?limitation|effort|paradox|"
    r"dos|debout|gauche|droite|ventre|rapide|avertissement|notification|"
    r"tech|comment|note|toilet|bathroom|patient|subject|cough|swallow|activity|"
    r"(lm|mj|cap|rmi|rswa|tib|end|on|off|rate|body)\b)"
)


# Texts without a name in them that scoring programs write beside stages and events, of which the words are theirs.
_STANDARD_TEXTS = (
    "unsure lightsoff lightson lightsout lights recordingstarttime recordingstart recordingends startrecording stoprecording "
    "limbmovement limbmovementleft limbmovementright legmovement plm plms periodiclimbmovement periodicbreathing snore snoring "
    "snoreevent spo2artifact spo2artefact artifact artefact movementarousal bradycardia tachycardia asystole position "
    "positionchange supine prone left right upright bodyposition calibration biocalibration impedancecheck montagechange "
    "gainfilterchange sleepspindle kcomplex rapideyemovement sawtoothwave bruxism cheynestokesbreathing cheynestokes "
    "hypoventilation arousals narrowcomplextachycardia widecomplextachycardia atrialfibrillation respiratoryparadox "
    "respiratoryevent centralapneaunsure unscoredevent eegarousal spontaneousarousal "
    "nobreathingeventsassessed noarousalsassessed nodesaturationsassessed"
)
_STANDARD = frozenset(_STANDARD_TEXTS.split())
# What this project's files say over time in which nobody looked for a family of events, however long that is.
NOT_ASSESSED = {
    "breathing": "No breathing events assessed",
    "arousal": "No arousals assessed",
    "desaturation": "No desaturations assessed",
}


def is_standard_text(text: str) -> bool:
    """Whether ``text`` is a stage, an event or a remark of a program's own list and nothing else: nobody wrote it by hand.

    :func:`event_of` finds arousals by a word in any text; here a text has to be known as a whole.
    """

    def known(part: str) -> bool:
        return fold(part) in _STAGE_OF or _key(part) in _EVENT_OF or fold(part) in _STANDARD

    return all(known(part) for part in text[:_READ].split("|")) and len(text) <= _READ


def says_not_assessed(text: str) -> bool:
    """Whether ``text`` is one of :data:`NOT_ASSESSED`, or both of NSRR's names are it."""
    return all(fold(part) in _SAID_NOT_ASSESSED for part in text[:_READ].split("|"))


def fold(text: str) -> str:
    """``text`` without case, accents, spaces and punctuation (a question mark is a stage in EDF+)."""
    return _fold(text[:_READ])


# A night has a few texts hundreds of times each, and every question about one begins here.
@lru_cache(maxsize=4096)
def _fold(text: str) -> str:
    plain = unicodedata.normalize("NFKD", _PREFIX.sub("", text)).casefold().replace("æ", "ae").replace("œ", "oe")
    return "".join(character for character in plain if character.isalnum() or character == "?")


_SAID_NOT_ASSESSED = frozenset(map(fold, NOT_ASSESSED.values()))


def _key(text: str) -> str:
    """``text`` folded for comparison with events: one spelling of apnoea and apnea."""
    return fold(text).replace("oe", "e").replace("ae", "e")


def _event_texts() -> dict[str, str]:
    found = {}
    for family, nouns in _NOUNS.items():
        for noun, ending in product(nouns.split(), _ENDINGS):
            found[_key(noun + ending)] = family
            for kind, words in _KINDS.items():
                for word in words.split():
                    meaning = family if family == "hypopnea" else f"{kind}_apnea"
                    found[_key(word + noun + ending)] = found[_key(noun + word + ending)] = meaning
    return found | {_key(text): kind for kind, texts in _EVENTS.items() for text in texts.split()}


_EVENT_OF = _event_texts()

# Numbers that cannot be mistaken: -1 and -2 are YASA's, 6 and 9 Compumedics', 7 WSC's for what is not scored.
_NUMBERS = {
    0: Stage.W,
    1: Stage.N1,
    2: Stage.N2,
    3: Stage.N3,
    **dict.fromkeys((-2, -1, 6, 7, 9), Stage.UNSCORED),
}


def stage_of(text: str) -> Stage | None:
    """The stage that ``text`` names, or None; of NSRR's two names ("Stage 2 sleep|2") either will do."""
    whole = _STAGE_OF.get(fold(text))
    if whole is not None or "|" not in text:
        return whole
    found = {stage for part in text.split("|") if (stage := _STAGE_OF.get(fold(part))) is not None}
    return found.pop() if len(found) == 1 else None


def epoch_stage_of(text: str) -> Stage | None:
    """The stage of an epoch whose label is ``text``, or None."""
    folded = fold(text)
    if not folded:
        # A bracket is no epoch: of a list that a program wrote in its own brackets every stage would be an epoch late.
        return Stage.UNSCORED if not text.strip(" -.") else None
    return Stage.UNSCORED if folded in _EPOCH_UNSCORED else stage_of(text)


def names_a_stage(text: str) -> bool:
    """Whether ``text`` can be nothing but a stage, known or not ("Sleep stage X")."""
    return _STAGE_WORDS.search(fold(text)) is not None


def mentions_a_stage(text: str) -> bool:
    """Whether one of several words of ``text`` is a stage's name ("wake after arousal")."""
    words = re.findall(r"[^\W_]{2,}", text[:_READ])
    return len(words) > 1 and any(stage_of(word) not in (None, Stage.UNSCORED) for word in words)


def event_of(text: str) -> str | None:
    """The type of event that ``text`` names, or None; of two names ("Apnea|Obstructive Apnea") the one that says more."""
    found = {kind for part in text.split("|") if (kind := _event_of(part[:_READ])) is not None}
    if len(found) > 1:
        found.discard("apnea")
    return found.pop() if len(found) == 1 else None


@lru_cache(maxsize=4096)
def _event_of(text: str) -> str | None:
    key = _key(text)
    if kind := _EVENT_OF.get(key):
        return kind
    return "arousal" if "arousal" in key and not _NO_AROUSAL.search(key) and not _has_breaths_missed(text) else None


def _names_missed_breaths(text: str) -> bool:
    """Whether ``text`` has the noun or an abbreviation of an apnea or hypopnea in it, misspelt or not."""
    return _has_breaths_missed(text[:_READ])


@lru_cache(maxsize=4096)
def _has_breaths_missed(text: str) -> bool:
    # Dutch sleep ends as an apnea begins ("slaap N2").
    # "OA event" is no "oevent", as it would be where ae is e.
    key = _key(_EVENT_WORD.sub("", text[:200]))
    if _BREATHS_MISSED.search(key.replace("slaap", "")):
        return True
    words = _words(text)
    if any(_BREATHLESS_WORD.fullmatch(word) for word in words):
        return True
    rest = [word for word in words if not _BESIDE_AN_EVENT.fullmatch(word)]
    if "micro" in key:
        rest = [word for word in rest if word != "ma"]  # a microarousal
    if rest and _ABBREVIATIONS.issuperset(rest) and not (len(rest) == 1 and rest[0] in _ALONE_ONE_OF_MANY):
        return True
    return any(difflib.get_close_matches(word, _SPELLINGS, n=1, cutoff=_NEAR) for word in words)


def is_respiratory(text: str) -> bool:
    """Whether ``text``, which :func:`event_of` does not know, may be an apnea or a hypopnea."""
    key = _key(text)
    if _names_missed_breaths(text):
        return True
    return _RESPIRATORY.search(key) is not None and not is_beside_the_point(text)


def is_beside_the_point(text: str) -> bool:
    """Whether ``text`` is known to say nothing of stages, apneas and hypopneas: leg movements, lights, artifacts, remarks."""
    if _names_missed_breaths(text):
        return False
    words = _spaced(text[:_READ])
    return not _SLEEP.search(words) and _BESIDE_THE_POINT.search(words.replace("k complex", "kcomplex")) is not None


def mentioned_events(text: str) -> list[str]:
    """The types of events beside breathing that a text has to do with, which is not understood ("Apnea, arousal?")."""
    key = _key(text)
    return [] if re.search(r"art[ei]fa", key) else [kind for kind, form in _MENTIONED.items() if form.search(key)]


def _spaced(text: str) -> str:
    """``text`` in words with blanks between them, without case, accents and punctuation ("LegMovement" is two)."""
    spaced = unicodedata.normalize("NFKD", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", text)).casefold()
    return re.sub(r"[\W_]+", " ", "".join(character for character in spaced if not unicodedata.combining(character)))


def _words(text: str) -> list[str]:
    """The words of ``text`` without numbers."""
    return re.findall(r"[^\W\d_]+", _spaced(text))


def stages_of_numbers(numbers: Sequence[int]) -> dict[int, Stage]:
    """What each number of a night's list of stages means.

    4 is stage 4 in a list by Rechtschaffen and Kales, which is known by a 5 (REM), 6, 7 or 9 (not scored); without any
    of these it is REM (YASA, AASM lists).

    Raises:
        ValueError: a number of neither list, or a night without these whose 4 lies next to 3, as stage 4 would.
    """
    meaning = dict(_NUMBERS)
    present = set(numbers)
    if present & {5, 6, 7, 9}:
        meaning |= {4: Stage.N3, 5: Stage.REM}
    elif 4 in present:
        runs = [value for i, value in enumerate(numbers) if i == 0 or numbers[i - 1] != value]
        beside = [runs[j] for i, value in enumerate(runs) if value == 4 for j in (i - 1, i + 1) if 0 <= j < len(runs)]
        if beside.count(3) * 2 > len(beside):
            raise ValueError(
                "4 may be stage 4 or REM, since there is no 5, 6, 7 or 9 and most 4s are beside a 3; write names instead of "
                "numbers"
            )
        meaning[4] = Stage.REM
    if unknown := sorted(present - meaning.keys()):
        raise ValueError(f"{unknown[0]} is not a stage; the stages are 0-5, and -2, -1, 6, 7 and 9 for unscored")
    return meaning
