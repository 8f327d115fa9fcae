"""Errors a user can cause and mend. Each message is one line: the value, what was expected, the remedy."""


class WhisperError(Exception):
    """Base of every error this package raises on purpose; the command line prints its message as one line."""


class AudioError(WhisperError):
    """The audio cannot be read or is not usable: missing file, no sound in it, NaN samples, a truncated stream."""


class CheckpointError(WhisperError):
    """Weights are missing, unexpected, mis-shaped, truncated or not the ones that were pinned."""


class UnknownModelError(WhisperError, ValueError):
    """No checkpoint of that name is known, installed or present on disk."""


class OptionError(WhisperError, ValueError):
    """An option has a value this model or command does not accept (language, task, output format ...)."""


class DeviceError(WhisperError):
    """The requested device is not there, or lacks what the compiled graphs need."""


class OutputError(WhisperError):
    """A result cannot be written where it was asked for."""
