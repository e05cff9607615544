"""Scales of charts: where a value is on an axis, and which values get a label."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

_MAX_TICKS = 6  # They also fit on a phone.


@dataclasses.dataclass(frozen=True)
class Scale:
    """Maps [low, high] to [0, 1].

    Attributes:
        low: The value at 0.
        high: The value at 1; above `low`.
        base: Of the logarithm, 2 or 10; 0 for a linear scale. Ticks of a scale to base
            10 may also be 2 or 5 times a power.

    >>> Scale(1, 10_000, base=10).place(100)
    0.5
    >>> Scale(0, 70).ticks()
    [0, 20, 40, 60]
    >>> Scale(257, 4096, base=2).ticks()
    [512, 1024, 2048, 4096]
    """

    low: float
    high: float
    base: int = 0

    @classmethod
    def around(cls, values: Iterable[float], base: int = 0) -> Scale:
        """Return a scale that holds all values, which are above 0 if it has a base.

        A linear scale begins at 0 and has some space at the top.
        """
        found = [*values] or [1]
        low, high = min(found), max(found)
        if not base:
            return cls(0, high * 1.08 or 1)
        return cls(low, high if high > low else low * base, base)

    def place(self, value: float) -> float:
        """Return where a value is, from 0 to 1; one outside is at the nearer end."""
        value = min(max(value, self.low), self.high)
        if self.base:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Return round values within the scale, at most 6 or so."""
        return self._log_ticks() if self.base else self._linear_ticks()

    def _linear_ticks(self) -> list[float]:
        rough = (self.high - self.low) / (_MAX_TICKS - 1)
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(
            power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.99
        )
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [_tidy(place * step) for place in range(first, last + 1)]

    def _log_ticks(self) -> list[float]:
        first = math.floor(math.log(self.low, self.base) + 1e-9)
        last = math.ceil(math.log(self.high, self.base) - 1e-9)
        powers = [float(self.base) ** power for power in range(first, last + 1)]
        factors = [1]
        if self.base == 10 and last - first <= 2:
            factors = [1, 2, 5]
        found = [
            _tidy(power * factor)
            for power in powers
            for factor in factors
            if self.low <= power * factor <= self.high
        ]
        stride = math.ceil(len(found) / _MAX_TICKS)
        return found[:: -stride or None][::-1] if found else [self.low]


def _tidy(value: float) -> float:
    """Remove rounding errors of a multiple of a power of ten."""
    value = round(value, 10)
    return int(value) if value == int(value) else value


def format_number(value: float) -> str:
    """Return a number as people write it: 12,345, 3.99 or 0.00012.

    >>> [format_number(value) for value in (0, 12345, 3.9915, 0.0001234, 250_000.0)]
    ['0', '12,345', '3.99', '0.00012', '250,000']
    """
    if value == int(value):
        return f"{int(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    if abs(value) >= 0.1:
        return f"{value:.2f}"
    digits = 1 - math.floor(math.log10(abs(value)))
    return f"{value:.{digits}f}".rstrip("0")


def format_short(value: float) -> str:
    """Return a number for an axis: 10k, 3M.

    >>> [format_short(value) for value in (500, 2048, 10_000, 3e6, 2.5e9, 0.01)]
    ['500', '2,048', '10k', '3M', '2.5G', '0.01']
    """
    for factor, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor and value % (factor / 10) == 0 and value >= 1e4:
            return f"{value / factor:g}{suffix}"
    return format_number(value)


def format_percent(share: float) -> str:
    """Return a share as a percentage; no share above 0 becomes 0.

    >>> [format_percent(share) for share in (0, 0.000012, 0.0167, 0.1234, 0.9999, 1)]
    ['0%', '0.0012%', '1.67%', '12.3%', '99.99%', '100%']
    """
    percent = 100 * share
    if 99.9 < percent < 100:
        return f"{min(percent, 99.99):.2f}%"
    return f"{percent:.3g}%" if percent >= 0.1 else f"{format_number(percent)}%"
