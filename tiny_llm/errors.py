"""Errors whose cause a user can fix, and the exit status of each.

Every message says what was wrong, the value, and what to do about it. A stage
prints the message as its last line and exits with `exit_status`.
"""

from __future__ import annotations


class ConfigError(ValueError):
    """A parameter or an argument has an unusable value."""

    exit_status = 2


class InputError(ValueError):
    """A text or another input file cannot be processed."""

    exit_status = 3


class IntegrityError(ValueError):
    """Bytes differ from what a digest, a size or a manifest says."""

    exit_status = 4


class DownloadError(IntegrityError):
    """A server cannot be reached, or what it sends is not the file.

    An IntegrityError too: both end a stage with status 4, so code that sees only the
    status, or catches IntegrityError, need not tell them apart.
    """


class ResourceError(OSError):
    """The machine ran out of disk space or memory."""

    exit_status = 5


class ClusterError(RuntimeError):
    """A cluster cannot be used, or fails at the same job each time."""

    exit_status = 6
