"""Every error that a user can cause or must act on; the command line shows one line of it."""


class ScanError(Exception):
    """Base of the errors below: its text says where, what was found, wanted, and what to do."""


class InputError(ScanError, ValueError):
    """A folder, option or image set that no result could be made of."""


class Unfinished(InputError):
    """An interrupted run with other options left something; the text says which differ."""


class InputMissing(ScanError, FileNotFoundError):
    """A folder or file that was named and is not there."""


class StoreMismatch(ScanError, ValueError):
    """Two things made by different encoders, formats or runs were brought together."""


class Damaged(ScanError, OSError):
    """A file of ours whose bytes are not what was written; names the rows where it can."""


class WriteFailed(ScanError, OSError):
    """The disk did not take what was to be written; nothing was published, nothing done is lost."""


class Busy(ScanError, BlockingIOError):
    """Another process is writing the same folder; the text says which."""


class CheckpointError(ScanError, ValueError):
    """A file that is not a checkpoint, or one that this version cannot use."""


class DependencyMissing(ScanError, ImportError):
    """An optional package is absent; the text names the extra that brings it."""


def described(error: ScanError | OSError) -> str:
    """Say an error in one line; one of the system names its file first, as ours do."""
    if isinstance(error, ScanError) or not error.strerror:
        return str(error)
    return f"{error.filename}: {error.strerror}." if error.filename else f"{error.strerror}."
