"""Errors with a cause that a user can mend, and the exit status of each.

Every message says what was wrong, the value, and what to do about it. A stage
prints the message as its last line and exits with `exit_status`.
"""

from __future__ import annotations


class ConfigError(ValueError):
    """A parameter or an argument has a value that cannot be used."""

    exit_status = 2


class InputError(ValueError):
    """Text or a file that was given cannot be processed."""

    exit_status = 3


class IntegrityError(ValueError):
    """Bytes are not the ones that were promised (by a digest, size or manifest)."""

    exit_status = 4


class ResourceError(OSError):
    """The machine ran out of disk or memory."""

    exit_status = 5
