"""Grammar: the English inflections that the slots of a story need.

Plurals, verb forms, pronouns, and the last touches to a paragraph (a or an, capitals).
Irregular words are in the tables at the top.
"""

from __future__ import annotations

import re
from collections.abc import Callable

PRONOUNS = {
    "he": {"he": "he", "him": "him", "his": "his", "himself": "himself"},
    "she": {"he": "she", "him": "her", "his": "her", "himself": "herself"},
    "it": {"he": "it", "him": "it", "his": "its", "himself": "itself"},
    "they": {"he": "they", "him": "them", "his": "their", "himself": "themselves"},
}

_PLURALS = {
    "child": "children",
    "deer": "deer",
    "fish": "fish",
    "foot": "feet",
    "goose": "geese",
    "knife": "knives",
    "leaf": "leaves",
    "loaf": "loaves",
    "man": "men",
    "mouse": "mice",
    "potato": "potatoes",
    "scarf": "scarves",
    "sheep": "sheep",
    "shelf": "shelves",
    "thief": "thieves",
    "tomato": "tomatoes",
    "tooth": "teeth",
    "wolf": "wolves",
    "woman": "women",
}

_PASTS = {
    "be": "was",
    "bring": "brought",
    "build": "built",
    "buy": "bought",
    "catch": "caught",
    "cut": "cut",
    "dig": "dug",
    "do": "did",
    "draw": "drew",
    "eat": "ate",
    "feed": "fed",
    "feel": "felt",
    "find": "found",
    "fly": "flew",
    "get": "got",
    "give": "gave",
    "go": "went",
    "have": "had",
    "hear": "heard",
    "hide": "hid",
    "keep": "kept",
    "leave": "left",
    "lie": "lay",
    "make": "made",
    "put": "put",
    "read": "read",
    "ride": "rode",
    "run": "ran",
    "see": "saw",
    "set": "set",
    "sing": "sang",
    "sit": "sat",
    "sleep": "slept",
    "slide": "slid",
    "spin": "spun",
    "stick": "stuck",
    "sweep": "swept",
    "swim": "swam",
    "swing": "swung",
    "take": "took",
    "teach": "taught",
    "tell": "told",
    "think": "thought",
    "throw": "threw",
    "wear": "wore",
    "weave": "wove",
    "wind": "wound",
    "write": "wrote",
}

# Short verbs whose last letter doubles: hop, hopped, hopping.
_DOUBLING = re.compile(r"^[^aeiou]*[aeiou][bdgklmnprt]$")
_NOT_DOUBLING = re.compile(r"[aeiou]{2}[a-z]$|[wxy]$")


def plural(phrase: str) -> str:
    """Return the plural of a noun phrase that ends with its noun.

    >>> plural("toy box"), plural("berry"), plural("wooden shelf")
    ('toy boxes', 'berries', 'wooden shelves')
    """
    head, space, noun = phrase.rpartition(" ")
    if noun in _PLURALS:
        noun = _PLURALS[noun]
    elif re.search(r"(s|x|z|ch|sh)$", noun):
        noun += "es"
    elif re.search(r"[^aeiou]y$", noun):
        noun = noun[:-1] + "ies"
    else:
        noun += "s"
    return head + space + noun


def past(phrase: str) -> str:
    """Return the past tense of a phrase that begins with a verb.

    >>> past("hop over a log"), past("fly a kite"), past("carry wood"), past("bake")
    ('hopped over a log', 'flew a kite', 'carried wood', 'baked')
    """
    verb, space, rest = phrase.partition(" ")
    if verb in _PASTS:
        verb = _PASTS[verb]
    elif verb.endswith("e"):
        verb += "d"
    elif re.search(r"[^aeiou]y$", verb):
        verb = verb[:-1] + "ied"
    elif _DOUBLING.search(verb) and not _NOT_DOUBLING.search(verb):
        verb += verb[-1] + "ed"
    else:
        verb += "ed"
    return verb + space + rest


def gerund(phrase: str) -> str:
    """Return the -ing form of a phrase that begins with a verb.

    >>> gerund("swim in the lake"), gerund("bake pies"), gerund("see"), gerund("lie")
    ('swimming in the lake', 'baking pies', 'seeing', 'lying')
    """
    verb, space, rest = phrase.partition(" ")
    if verb.endswith("ie"):
        verb = verb[:-2] + "y"
    elif verb.endswith("e") and not verb.endswith("ee"):
        verb = verb[:-1]
    elif _DOUBLING.search(verb) and not _NOT_DOUBLING.search(verb):
        verb += verb[-1]
    return verb + "ing" + space + rest


def capital(text: str) -> str:
    """Capitalise the first letter, which an opening quote may precede."""
    start = 1 if text.startswith('"') else 0
    return text[:start] + text[start : start + 1].upper() + text[start + 1 :]


INFLECTIONS: dict[str, Callable[[str], str]] = {
    "s": plural,
    "ed": past,
    "ing": gerund,
}

_ARTICLE = re.compile(r'\b([Aa]) (?="?([A-Za-z]+))')
_SOUNDS_LIKE_CONSONANT = re.compile(r"(one|once|uni|use|usu|eu|uk)", re.IGNORECASE)
_SOUNDS_LIKE_VOWEL = re.compile(r"(hour|honest|heir)", re.IGNORECASE)
# A sentence begins at the start, after . ! ?, after ." and at an opening quote. A tag
# ("he said") follows ," but never ."; it may follow !" or ?", so there the template
# decides.
_BEGINNING = re.compile(r'(^"?|[.!?] "?|\." "?|(?<= )")([a-z])')


def needs_an(word: str) -> bool:
    """Whether a word takes "an", because it begins with a vowel sound."""
    if _SOUNDS_LIKE_VOWEL.match(word):
        return True
    return word[0].lower() in "aeiou" and not _SOUNDS_LIKE_CONSONANT.match(word)


def polish(text: str) -> str:
    """Finish a paragraph: single spaces, a or an, capitals where sentences begin.

    >>> polish('he saw a  owl. "a one-eyed owl!" he said. "is it hungry?"')
    'He saw an owl. "A one-eyed owl!" he said. "Is it hungry?"'
    """
    text = " ".join(text.split())
    text = _ARTICLE.sub(
        lambda found: found[1] + ("n " if needs_an(found[2]) else " "), text
    )
    return _BEGINNING.sub(lambda found: found[1] + found[2].upper(), text)
