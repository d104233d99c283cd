"""Subcommands of ``sleepfm``: ``configure(parser)`` of each sets ``run(arguments) -> exit status``; see ``sleepfm/cli.py``."""
