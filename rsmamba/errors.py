"""Every error that a user can meet.

Each message names the thing at fault and the remedy in one line. The command line prints it and
exits with status 2; a script catches :class:`RsmambaError`, or the subclass that it can handle.
"""


def one_line(error: BaseException) -> str:
    """Message of another library's exception, and of its cause, without line breaks."""
    parts = [str(error) or type(error).__name__]
    if error.__cause__ is not None and str(error.__cause__) not in parts[0]:
        parts.append(str(error.__cause__))
    return " ".join(" - ".join(parts).split())


class RsmambaError(Exception):
    """Base class of all errors that are the user's to mend."""


class DataNotFoundError(RsmambaError, FileNotFoundError):
    """A folder, file or split that was asked for is not there, or is empty."""

    def __str__(self) -> str:
        """The message alone: OSError would format its arguments as an errno pair."""
        return str(self.args[0]) if self.args else ""


class ImageReadError(RsmambaError):
    """A file exists but cannot be decoded as an image."""


class ArchiveError(RsmambaError):
    """An archive is damaged, not the one expected, or unsafe to unpack."""


class LabelError(RsmambaError):
    """Labels do not fit: unknown class or attribute, value out of range, no labels at all."""


class BandMismatchError(RsmambaError):
    """The bands of the data are not the bands of the model."""


class CRSError(RsmambaError):
    """A coordinate reference system is missing, unknown or does not match."""


class GridMismatchError(RsmambaError):
    """Two rasters that must share one pixel grid do not."""


class ResolutionError(RsmambaError):
    """The ground sampling distance of a scene is not the one that a model was trained on."""


class UnknownModelError(RsmambaError, ValueError):
    """No model of that name is registered."""


class CheckpointError(RsmambaError):
    """A checkpoint is unreadable, unsafe, incomplete or belongs to another model."""


class SpecError(RsmambaError, ValueError):
    """A ModelSpec is missing or contradicts itself."""


class ConfigError(RsmambaError, ValueError):
    """Options or a recipe contradict each other or themselves."""


class BusyError(RsmambaError):
    """Another process is making the same output."""


class RunMismatchError(RsmambaError):
    """An unfinished run of the same output differs from this one."""


class OutputExistsError(RsmambaError, FileExistsError):
    """The output is there already; nothing is replaced without being told to."""

    def __str__(self) -> str:
        """The message alone: OSError would format its arguments as an errno pair."""
        return str(self.args[0]) if self.args else ""


class OutputNotWritableError(RsmambaError, PermissionError):
    """The output cannot be written where it was asked for."""

    def __str__(self) -> str:
        """The message alone: OSError would format its arguments as an errno pair."""
        return str(self.args[0]) if self.args else ""
