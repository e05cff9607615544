"""Dice: random choices that are the same on every machine and Python version.

The standard `random` module may change its shuffle between versions; this one never
changes.
"""

from __future__ import annotations

_MASK = (1 << 64) - 1


class Dice:
    """SplitMix64 (Steele, Lea and Flood, 2014) behind two small methods.

    >>> dice = Dice(1)
    >>> [dice.below(6) for _ in range(8)]
    [3, 4, 5, 2, 2, 4, 5, 3]
    """

    def __init__(self, seed: int) -> None:
        self._state = seed & _MASK

    def below(self, num_sides: int) -> int:
        """Return an integer in [0, num_sides), uniform to within 2**-64."""
        if num_sides < 1:
            raise ValueError(f"cannot choose from {num_sides} things")
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        z = self._state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return ((z ^ (z >> 31)) * num_sides) >> 64

    def chance(self, percent: int) -> bool:
        """Return True with a probability of `percent` percent."""
        return self.below(100) < percent


class Decks:
    """Shuffled decks of cards, so that all choices are made equally often.

    Each deck has a name and cards 0 .. size - 1, and deals every card once before it
    deals one again. So no word becomes much rarer than the others in its list.
    """

    def __init__(self, dice: Dice) -> None:
        self._dice = dice
        self._cards: dict[str, list[int]] = {}

    def deal(self, name: str, size: int) -> int:
        """Deal the next card of the deck called `name`, which has `size` cards."""
        if size == 1:
            return 0
        cards = self._cards.setdefault(name, [])
        if not cards:
            cards.extend(range(size))
            for last in range(size - 1, 0, -1):
                other = self._dice.below(last + 1)
                cards[last], cards[other] = cards[other], cards[last]
        return cards.pop()
