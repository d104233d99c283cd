"""Draw all faults of one night."""

from __future__ import annotations

from sleepfm.synthetic.faults.draft import Draft
from sleepfm.synthetic.faults.electrodes import (
    draw_electrode_lost,
    draw_electrodes_off,
    draw_saturation,
    draw_spo2_dropouts,
)
from sleepfm.synthetic.faults.interference import (
    draw_ecg_in_eeg,
    draw_leg_movements,
    draw_mains,
    draw_snoring,
    draw_sweat,
)
from sleepfm.synthetic.faults.rates import FaultRates
from sleepfm.synthetic.faults.recorder import draw_left_running
from sleepfm.synthetic.faults.scorer import (
    draw_kindless_apneas,
    draw_notes,
    draw_scored_span,
    draw_unscored,
    draw_vocabulary,
    hide_epochs_without_eeg,
)
from sleepfm.synthetic.faults.truth import Fault
from sleepfm.synthetic.night import Night


def add_faults(night: Night, rates: FaultRates, form: str) -> tuple[Night, tuple[Fault, ...]]:
    """``night`` with the faults that ``rates`` give it, and what they are, in order of onset.

    Each fault draws from a stream of its own: the night is the same without it, and so are the other faults. What electrodes
    without contact and saturated amplifiers record is put in by :func:`sleepfm.synthetic.faults.spoil.spoil`.

    Args:
        night: as drawn; it is not changed.
        rates: how often each fault happens.
        form: format of the scoring file, which limits what can be wrong in it.
    """
    draft = Draft(night, form)
    draw_snoring(draft, rates.snoring)
    draw_leg_movements(draft, rates.leg_movements)
    draw_ecg_in_eeg(draft, rates.ecg_in_eeg)
    draw_sweat(draft, rates.sweat)
    draw_mains(draft, rates.mains)
    # What takes the place of a signal is put in when the signal is recorded (:mod:`sleepfm.synthetic.faults.spoil`).
    draw_saturation(draft, rates.saturation)
    draw_electrodes_off(draft, rates.electrode_off)
    draw_electrode_lost(draft, rates.electrode_lost, rates.electrode_off)
    draw_spo2_dropouts(draft, rates.spo2_dropout)
    hide_epochs_without_eeg(draft)
    draw_unscored(draft, rates.unscored)
    draw_scored_span(draft, rates.late_start, rates.early_end)
    draw_left_running(draft, rates.left_running)
    draw_notes(draft, rates.notes)
    draw_kindless_apneas(draft, rates.kindless_apnea)
    draw_vocabulary(draft, rates.vocabulary)
    return draft.finish(), tuple(sorted(draft.faults, key=lambda fault: (fault.onset, fault.kind)))
