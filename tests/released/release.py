"""Write what a release stores: a data set, a model of each task, and what they gave then.

    python tests/released/release.py tests/released/VERSION

Run once for a release whose stored formats differ from those of the one before; what lies here already is never made anew,
since it stands for what users hold.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

MICRO = {
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
ENCODER = {
    "kind": "synthsleepnet",
    "channels": ["EEG_C4", "EOG_L"],
    "backbone": MICRO,
    "encoder": {"dim": 16, "depth": 1, "heads": 2},
    "decoder": {"dim": 8, "depth": 1, "heads": 2},
    "projector": [16, 8],
}
STREAM_ITEMS = 8


def main(out: Path) -> None:
    from shards.build import build
    from shards.build_config import BuildConfig
    from sleepfm.config import load_config
    from sleepfm.models.build import build_model, model_config
    from sleepfm.models.context import ContextConfig
    from sleepfm.models.downstream import Downstream, DownstreamConfig
    from sleepfm.models.event_head import EventHeadConfig
    from sleepfm.paths import config_root
    from sleepfm.registry.package import write_package
    from sleepfm.synthetic.cohort import write_cohort

    night = write_cohort(out / "night", subjects=1, hours=0.11, seed=3, cohort="sleep-edf")[0]
    build(
        night.parent,
        out / "shards",
        load_config(
            BuildConfig, config_root() / "shards.yaml", ["split.pretrain=1", "split.label=0", "split.val=0", "split.test=0"]
        ),
        workers=1,
    )
    torch.manual_seed(0)
    encoder = build_model(ENCODER)
    write_package(out / "encoder", encoder, {"model": model_config(encoder)}, "An untrained encoder.\n")
    context = ContextConfig(kind="mamba", d_state=8, headdim=8)
    for task, classes in {"stage": ("W", "N1", "N2", "N3", "REM"), "apnea": ("none", "apnea")}.items():
        torch.manual_seed(1)
        events = EventHeadConfig(hidden=8, context=context) if task == "apnea" else None
        plan = DownstreamConfig(task=task, classes=classes, encoder=model_config(encoder), context=context, events=events)
        model = Downstream(plan, build_model(ENCODER))
        config = {"model": model_config(model), "task": task, "window": 7, "facts": {"steps": 0}}
        binary = task != "stage"
        config |= {"threshold": 0.37 if binary else None, "threshold_rule": "max F1 on val" if binary else None}
        config |= {"event_threshold": 0.45 if binary else None}
        write_package(out / task, model, config, "An untrained model.\n")
    np.savez_compressed(out / "expected.npz", allow_pickle=False, **answers(out))


def answers(folder: Path) -> dict[str, NDArray[Any]]:
    """What this code makes of a release: the first items of the stream, their embeddings, and the scored night."""
    import sleepfm
    from sleepfm.data.dataset import Dataset
    from sleepfm.data.stream import Reading, SequenceStream

    torch.set_num_threads(1)
    encoder: Any = sleepfm.load(folder / "encoder")
    batch = SequenceStream(Dataset.open(folder / "shards"), "pretrain", encoder.channels, reading=Reading(seed=5)).batch(
        0, STREAM_ITEMS
    )
    signals = batch.signals[:, 0]
    digest = hashlib.sha256(signals.numpy().tobytes()).hexdigest()
    found = {"signals": np.array(digest), "item": batch.item.numpy(), "present": batch.present.numpy()}
    with torch.no_grad():
        found["embedding"] = encoder.embed({name: signals[:, k] for k, name in enumerate(encoder.channels)}).numpy()
    night = next((folder / "night").rglob("*.edf"))
    scored = sleepfm.score(night, [folder / "stage", folder / "apnea"])
    found |= {"stages": scored.stages, "hypnodensity": scored.hypnodensity, "apnea": scored.probability["apnea"]}
    found["events"] = np.array([(event.onset, event.duration) for event in scored.events])
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]))
