"""Subcommands of ``sleepfm``: each module has ``configure(parser)``, which sets ``run(arguments) -> exit status``."""
