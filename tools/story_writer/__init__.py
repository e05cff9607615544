"""Story writer: the program that wrote the built-in corpus.

`python -m tools.story_writer` writes data/train.txt and data/valid.txt, the same bytes
on every machine. Read the files in this order:

    dice.py      random choices that are the same everywhere
    grammar.py   plurals, verb forms, pronouns, a/an, capitals
    library.py   reads words/*.txt and plots/*.txt
    variation.py small paraphrases, applied to every text
    teller.py    fills the slots of one story
    corpus.py    how many stories, how long, train or valid

To add a plot, copy the first one in plots/lessons.txt and edit it; library.py explains
the format.
"""
