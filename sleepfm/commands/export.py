"""``sleepfm export``: a registered model into a folder that opens without a registry."""

from __future__ import annotations

import argparse

from sleepfm.command_line import add_examples
from sleepfm.commands.options import add_store
from sleepfm.console import say
from sleepfm.signals.files import local_path


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``sleepfm export``."""
    parser.add_argument("model", metavar="MODEL", help="models:/NAME@ALIAS, models:/NAME/VERSION or a model folder")
    parser.add_argument(
        "--to", required=True, metavar="DIR", help="new folder, or one that an earlier export of the same model wrote"
    )
    add_store(parser)
    parser.add_argument("--no-onnx", action="store_true", help="do not write the encoder as an ONNX file")
    add_examples(
        parser, "models:/sleepfm-scorer@champion --to exported", "models:/sleepfm-neuronet-eeg/3 --to exported --no-onnx"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the folder, whole or not at all."""
    from sleepfm.serving.export_folder import export_model

    folder = local_path(arguments.to, "--to")
    found = export_model(arguments.model, folder, arguments.store, not arguments.no_onnx, say)
    print(f"{found.uri} -> {folder}")
    return 0
