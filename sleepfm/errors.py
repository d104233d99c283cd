"""Every error a user can meet, in one tree.

A message names the file, channel or key, says what was found and what to do. ``exit_status`` is what a
command returns when the error ends it: 1 for refused input, 2 for wrong usage or configuration.
"""

from __future__ import annotations

import signal


class SleepFMError(Exception):
    """Base of all errors raised on purpose."""

    exit_status = 1


class RecordingError(SleepFMError):
    """A recording (EDF, BDF) that cannot be read as what it claims to be."""


class FatalRecordingError(RecordingError):
    """A recording whose conversion ends the process at it: memory that runs out, a crash, or a time limit."""


class GoneError(RecordingError):
    """A recording that was planned and is no longer in the source."""


class ExcludedError(RecordingError):
    """A recording that its user has excluded."""


class InternalError(SleepFMError):
    """A fault of this program that one recording brings to light."""


class DuplicateError(RecordingError):
    """A recording that is another one under a second name."""


class MontageError(SleepFMError):
    """A channel that is missing, ambiguous, or unfit (unit, rate) for its canonical name."""


class AnnotationError(SleepFMError):
    """A scoring file that cannot be read or does not belong to its recording."""


class StageTextError(AnnotationError):
    """A scoring that has texts where stages stand which are not understood; its recording can be used without it."""


class SubjectTableError(SleepFMError):
    """A table of what is known of people that cannot be read, or that contradicts itself."""


class SignalError(SleepFMError):
    """A signal array of the wrong shape, length, rate or content."""


class DatasetError(SleepFMError):
    """A data set folder (shards and manifest) that is missing, incomplete or of another version."""


class EmptySplitError(DatasetError):
    """A data set without any recording, or any item, of the split and the channels that are asked for."""


class ShardError(DatasetError):
    """A shard whose bytes are not what the manifest says."""


class ModelError(SleepFMError):
    """A model that does not fit its configuration, weights or input."""


class StorageError(SleepFMError, OSError):
    """A file that cannot be written: no room, no permission, another file in its place."""


class BusyError(SleepFMError):
    """A folder that another process is writing into."""


class LeakageError(SleepFMError):
    """A model that would be judged by people whom it, or a model that it was made from, has seen."""


class CheckpointError(SleepFMError):
    """A training checkpoint that cannot be resumed."""


class TrainingError(SleepFMError):
    """A training run that has to stop."""


class LostRankError(TrainingError):
    """Another process of the job is gone or does not answer; the same command goes on with what is left."""

    # EX_UNAVAILABLE of sysexits.h.
    exit_status = 69


class LostWorkerError(LostRankError):
    """A process that reads data for this one is gone."""


class RegistryError(SleepFMError):
    """A model, version or alias that the registry does not hold, or whose bytes have changed."""


class MissingVersionError(RegistryError):
    """A model, version or alias that a registry, which answers, does not hold."""


class ConfigError(SleepFMError):
    """A configuration file or ``key=value`` override that is wrong."""

    exit_status = 2


class DependencyError(SleepFMError):
    """A library that a command needs and that only an extra of the package brings."""

    exit_status = 2


class PreflightError(SleepFMError):
    """Faults of a job that were found before its first step, in one list."""

    def __init__(self, message: str, exit_status: int) -> None:
        super().__init__(message)
        self.exit_status = exit_status


class UsageError(SleepFMError):
    """Command line arguments that make no sense together."""

    exit_status = 2


class Interrupted(KeyboardInterrupt):
    """A signal that asks a command to end; nothing that takes errors for its own catches it."""

    def __init__(self, number: int, told: str) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}{'; ' if told else ''}{told}")
        self.exit_status = 128 + number
