"""Argument checks shared by several modules."""

from __future__ import annotations

import numpy as np

from tiny_llm.errors import ConfigError


def check_int(
    name: str, value: object, at_least: int = 1, at_most: int | None = None
) -> int:
    """Return an argument as a Python integer, which cannot overflow.

    Raises:
        ConfigError: `value` is not an integer, or is out of range.

    >>> check_int("seq_len", np.int16(256))
    256
    """
    if type(value) is int and value >= at_least and at_most is None:
        return value  # Fast path: drawing a whole batch takes only 40 microseconds.
    wanted = f">= {at_least}" if at_most is None else f"from {at_least} to {at_most:,}"
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ConfigError(f"{name} is {value!r}; give an integer {wanted}")
    number = int(value)
    if number < at_least or (at_most is not None and number > at_most):
        # Python refuses to print integers of more than 4,300 digits.
        huge = number.bit_length() > 128
        shown = f"an integer of {number.bit_length():,} bits" if huge else f"{number:,}"
        raise ConfigError(f"{name} is {shown}; give an integer {wanted}")
    return number
