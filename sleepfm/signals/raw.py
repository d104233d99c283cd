"""An ``mne`` Raw as a recording, so that what is in memory goes the same way as what is on disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sleepfm.signals.edf.annotations import Annotation
from sleepfm.signals.recording import Recording, SignalInfo

if TYPE_CHECKING:
    import mne

# A Raw does not know its recorder's range: far wider than any signal, so that nothing counts as clipped.
_RANGE = 1e9


def recording_from_raw(raw: mne.io.BaseRaw) -> Recording:
    """``raw`` with its channels in SI units (V), the one rate that MNE gives them, and its annotations.

    Channels whose unit MNE does not hold (oximetry, respiration) have none. The name is that of Raw's file. A channel that is
    named as ours (``EEG_C4``) is taken for it; beside a mastoid alone it is read as in a file, C4 against what is not named.
    """
    from mne.io.constants import FIFF

    rate = float(raw.info["sfreq"])
    names = [name for name in raw.filenames if name is not None]
    path = Path(names[0]) if names else Path("raw")
    start = raw.info["meas_date"]
    # Annotations count from the measurement's date where they have one, else from the first sample (MNE manual).
    shift = raw.first_time if raw.annotations.orig_time is not None else 0.0
    annotations = zip(raw.annotations.onset, raw.annotations.duration, raw.annotations.description, strict=True)
    signals = tuple(
        SignalInfo(
            label=channel["ch_name"],
            unit="V" if channel["unit"] == FIFF.FIFF_UNIT_V else "",
            rate=rate,
            n_samples=raw.n_times,
            physical_min=-_RANGE,
            physical_max=_RANGE,
            digital_min=-(2**31),
            digital_max=2**31 - 1,
        )
        for channel in raw.info["chs"]
    )
    return Recording(
        path=path,
        format="mne Raw",
        patient="",
        start=None if start is None else start.replace(tzinfo=None),
        duration=raw.n_times / rate,
        signals=signals,
        gaps=(),
        annotations=tuple(Annotation(float(onset) - shift, float(duration), str(text)) for onset, duration, text in annotations),
        warnings=(),
        source=lambda index: raw.get_data(picks=[index])[0].astype(np.float32),
        canonical_names=True,
    )
