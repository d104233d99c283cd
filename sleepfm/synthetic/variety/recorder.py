"""Recorders: which signals there are, at which rates, and what amplifiers make of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.signal import butter, iirnotch, sosfilt, tf2sos

from sleepfm.synthetic.layout import Layout, LayoutScoring, LayoutSignal
from sleepfm.synthetic.noise import Floats, drift, upsample
from sleepfm.synthetic.subject import Subject
from sleepfm.synthetic.variety.config import Amplifier, Noise, Polarity, Variety, choose, ratio

# Below these a rate cannot carry the signal (configs/cohorts/defaults.yaml, `minimum_rate`): such recorders sample it faster.
LEAST_EMG, LEAST_ECG = 100, 100
# Half of the recorder's range, by unit; of the sources of other signals it is that of the synthetic cohort.
RANGES = {"uV": (200.0, 1600.0), "mV": (2.0, 10.0)}
DRIFT_SECONDS = 8.0
# Of the notch filter: its frequencies in Hz and its quality factor.
NOTCHES, NOTCH_QUALITY = (50.0, 60.0), 30.0
GROUPS = {
    "eeg": ("C3", "C4"),
    "eyes": ("E1", "E2"),
    "ecg": ("ECG",),
    "emg": ("CHIN",),
    "breathing": ("FLOW", "THORAX", "ABDOMEN"),
    "spo2": ("SPO2",),
}
# Each eye against the mastoids, or both below the eyes against Fpz (the acceptable derivations of the AASM manual).
EYES: dict[str, dict[str, float]] = {"E1-M2 E2-M1": {}, "E1-Fpz E2-Fpz": {"FPZ": -1.0}}


@dataclass(frozen=True)
class Filters:
    """Corner frequencies in Hz of the electrodes' amplifier and of the sensors', their order, and the notch in Hz, if any."""

    high: float
    low: float
    sensor_high: float
    sensor_low: float
    order: int
    notch: float | None


@dataclass(frozen=True)
class AddedNoise:
    """What is added: ``white``, ``mains`` and ``drift`` by label in µV, the mains' frequency in Hz, sensors' noise relative to
    what they measure."""

    white: dict[str, float]
    mains: dict[str, float]
    drift: dict[str, float]
    hertz: float
    sensor: float


@dataclass(frozen=True)
class Recorder:
    """One recording's layout and what is done to each of its signals.

    Attributes:
        layout: labels, rates, units and ranges.
        derivations: of the two EEG, in the places of C3-M2 and C4-M1.
        signs, gains: by label; 1 where a signal is not named.
        filters, noise: None where the recorder has none.
    """

    layout: Layout
    derivations: tuple[str, str]
    signs: dict[str, float]
    gains: dict[str, float]
    filters: Filters | None
    noise: AddedNoise | None


def varied_layout(signals: dict[str, LayoutSignal]) -> Layout:
    """Names and places of a cohort whose recordings have ``signals`` of their own."""
    return Layout(
        name="synthetic-{number:05d}",
        first=1,
        most=99999,
        edf="recordings/{name}.edf",
        scoring=LayoutScoring(format="nsrr-xml", path="recordings/{name}-nsrr.xml"),
        signals=signals,
    )


def draw_recorder(subject: Subject, variety: Variety) -> Recorder:
    """The recorder of ``subject``'s night; each knob draws from a stream of its own."""
    first, second, eyes = _derivations(subject, variety)
    signals = _signals(subject, variety, first, second, eyes)
    return Recorder(
        varied_layout(signals),
        (first, second),
        _signs(subject, variety.polarity, signals),
        _gains(subject, variety.gains, signals),
        _filters(subject, variety.amplifier),
        _noise(subject, variety.noise, signals),
    )


def record(signals: Iterable[Floats], recorder: Recorder, subject: Subject) -> Iterator[Floats]:
    """``signals`` of the recorder's layout in order, each [seconds * rate] in its unit, as the amplifiers give them."""
    for (label, item), signal in zip(recorder.layout.signals.items(), signals, strict=True):
        rng = subject.rng(f"variety/signal/{label}")
        unit = _microvolts(item)
        is_sensor = not unit and not item.source.keys() & set(GROUPS["spo2"])
        if unit and recorder.noise is not None:
            signal = signal + unit * _added(rng, recorder.noise, label, len(signal), item.rate)
        elif is_sensor and recorder.noise is not None:
            size = np.float32(recorder.noise.sensor * np.std(signal))
            signal = signal + size * rng.standard_normal(len(signal), dtype=np.float32)
        if recorder.filters is not None and (unit or is_sensor):
            signal = _filtered(signal, recorder.filters, item.rate, bool(unit))
        yield signal * np.float32(recorder.signs.get(label, 1.0) * recorder.gains.get(label, 1.0))


def _derivations(subject: Subject, variety: Variety) -> tuple[str, str, str]:
    if variety.montage is None:
        return "C3-M2", "C4-M1", next(iter(EYES))
    rng = subject.rng("variety/montage")
    first, second = choose(rng, variety.montage.eeg).split()
    return first, second, choose(rng, variety.montage.eyes)


def _signals(subject: Subject, variety: Variety, first: str, second: str, eyes: str) -> dict[str, LayoutSignal]:
    rate, breathing = 125, 10
    if variety.rates is not None:
        rng = subject.rng("variety/rates")
        rate = int(choose(rng, {str(hertz): weight for hertz, weight in variety.rates.signals.items()}))
        breathing = int(choose(rng, {str(hertz): weight for hertz, weight in variety.rates.breathing.items()}))
    bits, spans = 16, {unit: high for unit, (_, high) in RANGES.items()}
    if variety.amplifier is not None:
        rng = subject.rng("variety/bits")
        bits = int(choose(rng, {str(number): weight for number, weight in variety.amplifier.bits.items()}))
        spans = {unit: round(ratio(rng, bounds), 1) for unit, bounds in RANGES.items()}
    digital = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)

    def made(source: dict[str, float], unit: str, hertz: int, span: float) -> LayoutSignal:
        return LayoutSignal.model_validate(
            {"from": source, "unit": unit, "rate": hertz, "physical": (-span, span), "digital": digital}
        )

    left, right = eyes.split()
    below = {"BLINKS": -1.25} if "FPZ" in EYES[eyes] else {}
    found = {
        f"EEG {first}": made({"C3": 1.0}, "uV", rate, spans["uV"]),
        f"EEG {second}": made({"C4": 1.0}, "uV", rate, spans["uV"]),
        f"EOG {left}": made({"E1": 1.0, **EYES[eyes]}, "uV", rate, spans["uV"]),
        f"EOG {right}": made({"E2": 1.0, **below, **EYES[eyes]}, "uV", rate, spans["uV"]),
        "EMG Chin1-Chin2": made({"CHIN": 1.0}, "uV", max(rate, LEAST_EMG), spans["uV"]),
        "ECG": made({"ECG": 1.0}, "mV", max(rate, LEAST_ECG), spans["mV"]),
        "Airflow": made({"FLOW": 1.0}, "", breathing, 250.0),
        "Thorax": made({"THORAX": 1.0}, "", breathing, 2.0),
        "Abdomen": made({"ABDOMEN": 1.0}, "", breathing, 2.0),
        "SpO2": LayoutSignal.model_validate({"from": {"SPO2": 1.0}, "unit": "%", "rate": 1, "physical": (0, 100)}),
    }
    lacking = _lacking(subject, variety)
    return {label: item for label, item in found.items() if not item.source.keys() & lacking}


def _lacking(subject: Subject, variety: Variety) -> set[str]:
    """Sources that are not recorded."""
    if variety.channels is None:
        return set()
    rng = subject.rng("variety/channels")
    one, which = rng.random() < variety.channels.one_eeg, rng.integers(2)
    lacking = {GROUPS["eeg"][which]} if one else set()
    for group, sources in GROUPS.items():
        # Drawn for every group, so that a share of one changes nothing of another.
        if rng.random() < variety.channels.without.get(group, 0.0):
            lacking.update(sources)
    return lacking


def _signs(subject: Subject, polarity: Polarity | None, signals: dict[str, LayoutSignal]) -> dict[str, float]:
    if polarity is None:
        return {}
    shares = {"eeg": polarity.eeg, "eyes": polarity.eyes, "ecg": polarity.ecg, "breathing": polarity.breathing}
    signs = {}
    for label, item in signals.items():
        rng = subject.rng(f"variety/polarity/{next(iter(item.source))}")
        for group, share in shares.items():
            if item.source.keys() & set(GROUPS[group]):
                signs[label] = -1.0 if rng.random() < share else 1.0
    return signs


def _gains(subject: Subject, gains: tuple[float, float] | None, signals: dict[str, LayoutSignal]) -> dict[str, float]:
    if gains is None:
        return {}
    return {
        label: ratio(subject.rng(f"variety/gain/{next(iter(item.source))}"), gains)
        for label, item in signals.items()
        if "SPO2" not in item.source
    }


def _filters(subject: Subject, amplifier: Amplifier | None) -> Filters | None:
    if amplifier is None:
        return None
    rng = subject.rng("variety/amplifier")
    high, low = ratio(rng, amplifier.high_pass), ratio(rng, amplifier.low_pass)
    sensor_high, sensor_low = ratio(rng, amplifier.breathing_high_pass), ratio(rng, amplifier.breathing_low_pass)
    order, notched = int(rng.integers(1, 3)), rng.random() < amplifier.notch
    return Filters(high, low, sensor_high, sensor_low, order, float(rng.choice(NOTCHES)) if notched else None)


def _noise(subject: Subject, noise: Noise | None, signals: dict[str, LayoutSignal]) -> AddedNoise | None:
    if noise is None:
        return None
    rng = subject.rng("variety/noise")
    hertz, sensor = float(choose(rng, noise.hertz)), ratio(rng, noise.breathing)
    sizes: dict[str, dict[str, float]] = {}
    for kind, bounds in (("white", noise.white), ("mains", noise.mains), ("drift", noise.drift)):
        streams = {label: subject.rng(f"variety/noise/{kind}/{next(iter(item.source))}") for label, item in signals.items()}
        sizes[kind] = {label: ratio(stream, bounds) for label, stream in streams.items()}
    return AddedNoise(sizes["white"], sizes["mains"], sizes["drift"], hertz, sensor)


def _added(rng: np.random.Generator, noise: AddedNoise, label: str, n: int, rate: int) -> Floats:
    """Noise of amplifier and electrode [n] in µV."""
    added = np.float32(noise.white[label]) * rng.standard_normal(n, dtype=np.float32)
    added += upsample(np.float32(noise.drift[label]) * drift(rng, n // rate, DRIFT_SECONDS), rate)
    phase = rng.uniform(0.0, 2.0 * np.pi)
    if rate > 2.0 * noise.hertz:
        # Whole turns in a second.
        turn = np.sin(2.0 * np.pi * noise.hertz / rate * np.arange(rate) + phase).astype(np.float32)
        added.reshape(-1, rate)[:] += np.float32(noise.mains[label]) * turn
    return added


def _filtered(signal: Floats, filters: Filters, rate: int, is_electrode: bool) -> Floats:
    """Through the causal filters of an amplifier."""
    high, low = (filters.high, filters.low) if is_electrode else (filters.sensor_high, filters.sensor_low)
    sections = [butter(filters.order, high, "highpass", fs=rate, output="sos")]
    if low < 0.45 * rate:
        sections.append(butter(filters.order, low, "lowpass", fs=rate, output="sos"))
    if is_electrode and filters.notch is not None and filters.notch < 0.45 * rate:
        sections.append(tf2sos(*iirnotch(filters.notch, NOTCH_QUALITY, fs=rate)))
    filtered: Floats = sosfilt(np.concatenate(sections), signal - signal[0]).astype(np.float32)
    return filtered


def _microvolts(item: LayoutSignal) -> np.float32:
    """The signal's unit for a µV; 0 for what is no voltage."""
    return np.float32({"uV": 1.0, "mV": 1e-3}.get(item.unit, 0.0))
