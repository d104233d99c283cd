"""One recording of a training cohort: a person, the night as the recorder derives it, and the scorer's stages."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from sleepfm.synthetic.night import Night, night_of
from sleepfm.synthetic.subject import draw_subject
from sleepfm.synthetic.variety.config import Variety
from sleepfm.synthetic.variety.montage import rederive
from sleepfm.synthetic.variety.people import vary
from sleepfm.synthetic.variety.recorder import Recorder, draw_recorder
from sleepfm.synthetic.variety.scorer import call_stages


@dataclass(frozen=True)
class VariedRecording:
    """A night before its faults, and what records it."""

    night: Night
    recorder: Recorder

    def told(self) -> dict[str, Any]:
        """What was drawn, as JSON: the person's traits, and the recorder's rates, ranges and filters."""
        own = self.recorder
        recorder = {
            "derivations": own.derivations,
            "channels": {channel.label: asdict(channel) for channel in own.layout.channels},
            "signs": own.signs,
            "gains": own.gains,
            "filters": asdict(own.filters) if own.filters else None,
            "noise": asdict(own.noise) if own.noise else None,
        }
        return {"person": asdict(self.night.subject), "recorder": recorder}


def draw_varied(seed: int, number: int, n_epochs: int, variety: Variety) -> VariedRecording:
    """The recording of person ``number`` (0-based) of the cohort with ``seed``, ``n_epochs`` 30-s epochs long.

    A pure function of its arguments; a knob that is off changes nothing of what the others draw.

    Raises:
        ConfigError: ``variety`` names a trait that nobody has or a site that is not drawn.
    """
    subject = vary(draw_subject(seed, number), variety)
    recorder = draw_recorder(subject, variety)
    night = rederive(night_of(subject, n_epochs), *recorder.derivations)
    if variety.scorer:
        night = replace(night, codes=call_stages(subject, night.codes))
    return VariedRecording(night, recorder)
