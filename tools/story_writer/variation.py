"""Variation: small paraphrases, applied to every text.

The table `swaps` lists phrases and their replacements, and `contract` turns some
"did not" into "didn't". So plots can be short and still read differently each time.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

from tools.story_writer.grammar import capital
from tools.story_writer.library import Table

_CONTRACTIONS = (
    (r"\b([Cc]ould|[Dd]id|[Dd]oes|[Ww]as|[Ww]ere|[Hh]ad|[Ww]ould) not\b", r"\1n't"),
    (r"\b([Ii]s|[Dd]o) not\b", r"\1n't"),
    (r"\b([Cc])an ?not\b", r"\1an't"),
    (r"\b([Ii]t|[Tt]hat|[Ww]hat) is (?=[a-z])", r"\1's "),
    (r"\bI am (?=[a-z])", r"I'm "),
    (r"\b(I|[Yy]ou|[Ww]e) will (?=[a-z])", r"\1'll "),
    (
        r"(?<!where )(?<!than )(?<!as )(?<!how )\b([Yy]ou|[Ww]e) are (?=[a-z])",
        r"\1're ",
    ),
    (r"\bLet us (?!in\b|go of\b)(?=[a-z])", "Let's "),
)
_EACH_CONTRACTION = [(re.compile(long), short) for long, short in _CONTRACTIONS]


def contract(text: str, is_wanted: Callable[[], bool]) -> str:
    """Contract "did not", "it is" and the like wherever `is_wanted` returns True.

    >>> contract("I am sure it is here. There it is!", lambda: True)
    "I'm sure it's here. There it is!"
    """

    def shorten(found: re.Match[str], short: str) -> str:
        whole: str = found[0]
        return found.expand(short) if is_wanted() else whole

    for pattern, short in _EACH_CONTRACTION:
        text = pattern.sub(partial(shorten, short=short), text)
    return text


def swapper(swaps: Table) -> Callable[[str], str]:
    """Return a function that replaces phrases of the table in a template.

    Replacements are not searched again. Slots are left alone unless a phrase contains
    them.
    """
    choices = {row[0]: row[1] for row in swaps.rows}
    longest_first = sorted(choices, key=lambda phrase: (-len(phrase), phrase))
    bounded = (
        (r"\b" if phrase[0].isalpha() else "")
        + re.escape(phrase)
        + (r"\b" if phrase[-1].isalpha() else "")
        for phrase in longest_first
    )
    # Slots keep their case ({He} is not {he}); plain words may begin a sentence.
    pattern = re.compile("|".join([*bounded, r"\{[^}]*\}"]), re.IGNORECASE)

    def put_in(found: re.Match[str]) -> str:
        text: str = found[0]
        if text in choices:
            return choices[text]
        lower = text[:1].lower() + text[1:]
        if text[:1].isupper() and lower in choices:
            return _capital_options(choices[lower])
        return text

    return lambda template: pattern.sub(put_in, template)


def _capital_options(choice: str) -> str:
    """Capitalise the text, or each option if it begins with a choice.

    >>> _capital_options("[soon|before long] it"), _capital_options("then [a|b]")
    ('[Soon|Before long] it', 'Then [a|b]')
    """
    if not choice.startswith("["):
        return _capital_start(choice)
    options, close, rest = choice[1:].partition("]")
    return "[" + "|".join(map(_capital_start, options.split("|"))) + close + rest


def _capital_start(text: str) -> str:
    return "{" + capital(text[1:]) if text.startswith("{") else capital(text)
