"""``sleepfm convert``: a checkpoint of the released code into a package of this project."""

from __future__ import annotations

import argparse
from pathlib import Path

from sleepfm.command_line import add_examples


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``sleepfm convert``."""
    parser.add_argument(
        "checkpoint", type=Path, metavar="CKPT", help="best_model.pth of the released code; nothing in it is executed"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="new folder for the converted model")
    parser.add_argument(
        "--task",
        default="stage",
        help="what a downstream model predicts: stage, apnea, hypopnea or arousal (default: %(default)s)",
    )
    parser.add_argument(
        "--pretrained",
        type=Path,
        metavar="CKPT",
        help="the multimodal checkpoint from which a downstream model was trained; it supplies settings that the latter lacks",
    )
    parser.add_argument(
        "--channels",
        default="",
        metavar="A,B",
        help="channels of a unimodal model, for example EEG_C3,EEG_C4 (default: those of the modality that the checkpoint names)",
    )
    add_examples(
        parser, "best_model.pth converted", "best_model.pth converted --task stage --pretrained multimodal/best_model.pth"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the package and say what is in it."""
    from sleepfm.config import digest
    from sleepfm.files import sha256_file
    from sleepfm.models.build import model_config
    from sleepfm.models.downstream import Downstream
    from sleepfm.models.reference.convert import convert
    from sleepfm.output import Origin, whole_folder
    from sleepfm.registry.package import write_package
    from sleepfm.signals.files import local_path
    from sleepfm.tasks import get_task

    out = local_path(arguments.out, "OUT")
    channels = [name for name in arguments.channels.split(",") if name]
    task = get_task(arguments.task)
    converted = convert(arguments.checkpoint, task.name, task.classes, arguments.pretrained, channels)
    module = converted.module
    config = model_config(module)
    usage = module.usage.to_package() if isinstance(module, Downstream) and module.usage is not None else {}
    size = sum(parameter.numel() for parameter in module.parameters())
    card = "\n".join(
        [
            f"# Converted {config['kind']}",
            "",
            f"From `{arguments.checkpoint.name}`, written by the released code of the paper. Not trained here.",
            "",
            f"- {size:,} parameters; channels {', '.join(module.channels)}",
            *(f"- {note}" for note in converted.notes),
            "",
        ]
    )
    checkpoints = [path for path in (arguments.checkpoint, arguments.pretrained) if path is not None]
    source = digest({"checkpoints": [sha256_file(path) for path in checkpoints], "task": task.name, "channels": channels})
    with whole_folder(out, Origin("converted package", source, str(arguments.checkpoint))) as unfinished:
        write_package(unfinished, module, {"model": config} | usage, card)
    print(f"{out}: {config['kind']}, {size:,} parameters, channels {', '.join(module.channels)}")
    for note in converted.notes:
        print(f"  {note}")
    return 0
