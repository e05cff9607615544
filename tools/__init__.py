"""Tools for maintainers, run from the root of the repository.

    python -m tools.story_writer    writes the built-in corpus, data/
    python -m tools.draw_reports    draws the pictures of the README, reports/*.svg

Neither the library nor a stage imports them.
"""
