"""The smallest NeuroNet, for tests of what happens to a package."""

from __future__ import annotations

MODEL = {
    "kind": "neuronet",
    "channels": ["ECG"],
    "frame_encoder": {
        "stem": 4,
        "stem_stride": 4,
        "channels": [4, 8],
        "strides": [2, 2],
        "pools": [3, 2, 1],
        "reduction": 4,
        "feature": 16,
    },
    "encoder": {"dim": 16, "depth": 1, "heads": 2},
    "decoder": {"dim": 8, "depth": 1, "heads": 2},
    "projector": [16, 8],
}
