"""Dice: choices that come out the same on every machine and Python version.

The standard `random` module may change how it shuffles between versions; this may not.
"""

from __future__ import annotations

_MASK = (1 << 64) - 1


class Dice:
    """SplitMix64 (Steele, Lea and Flood, 2014) behind two small questions.

    >>> dice = Dice(1)
    >>> [dice.below(6) for _ in range(8)]
    [3, 4, 5, 2, 2, 4, 5, 3]
    """

    def __init__(self, seed: int) -> None:
        self._state = seed & _MASK

    def below(self, num_sides: int) -> int:
        """An integer in [0, num_sides), all equally likely up to 2**-64."""
        if num_sides < 1:
            raise ValueError(f"cannot choose among {num_sides} things")
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        z = self._state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return ((z ^ (z >> 31)) * num_sides) >> 64

    def chance(self, percent: int) -> bool:
        """True in `percent` of a hundred cases."""
        return self.below(100) < percent


class Decks:
    """Deals from shuffled decks, so that no choice is favoured for long.

    Every deck has a name; its cards 0 .. size - 1 all come up once before any comes
    up again. That keeps rare words from being much rarer than their neighbours.
    """

    def __init__(self, dice: Dice) -> None:
        self._dice = dice
        self._cards: dict[str, list[int]] = {}

    def deal(self, name: str, size: int) -> int:
        """The next card of the deck called `name`, which has `size` cards."""
        if size == 1:
            return 0
        cards = self._cards.setdefault(name, [])
        if not cards:
            cards.extend(range(size))
            for last in range(size - 1, 0, -1):
                other = self._dice.below(last + 1)
                cards[last], cards[other] = cards[other], cards[last]
        return cards.pop()
