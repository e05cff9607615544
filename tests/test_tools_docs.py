"""docs/tools.md: it covers every command, and shows what the commands show."""

import argparse
import os
import re
import stat
import sys

import pytest

from tests.conftest import ROOT
from tiny_llm.card import PROPERTIES
from tiny_llm.cli import make_parser
from tiny_llm.export import FORMATS

DOCS = (ROOT / "docs" / "tools.md").read_text()
# The examples: a line `    $ COMMAND`, and what it prints.
EXAMPLES = re.findall(r"(?m)^    \$ (.*)\n((?:(?:    (?!\$ ).*)?\n)*)", DOCS)


def subparsers():
    [action] = [
        action
        for action in make_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    ]
    return action.choices.items()


@pytest.mark.parametrize(("name", "parser"), subparsers())
def test_every_command_and_option_is_documented(name, parser):
    assert f"\n| `tiny-llm {name}" in DOCS
    assert f"\n    $ tiny-llm {name}" in DOCS
    for action in parser._actions:
        for option in action.option_strings:
            assert option == "-h" or re.search(rf"{option}\b", DOCS), option


def test_every_format_and_property_is_documented():
    for name in FORMATS:
        assert f"\n| `{name}` |" in DOCS
    for name in PROPERTIES:
        assert f"`{name}`" in DOCS


def test_every_function_for_python_exists():
    names = re.findall(r"(?m)^\| `tiny-llm .*\| `([\w.]+)` \|$", DOCS)
    assert len(names) == len(subparsers())
    for name in names:
        module, *attributes = name.split(".")
        value = __import__(f"tiny_llm.{module}", fromlist=["_"])
        for attribute in attributes:
            value = getattr(value, attribute)
        assert callable(value)


def test_the_examples_print_what_the_page_shows(clone):
    tool = clone.path / "tiny-llm"
    tool.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tiny_llm.cli "$@"\n')
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    path = os.pathsep.join([str(clone.path), clone.env["PATH"]])
    assert len(EXAMPLES) >= 8
    for command, shown in EXAMPLES:
        lines = [line.removeprefix("    ") for line in shown.rstrip().splitlines()]
        done = clone.run("bash", "-c", f"set -o pipefail; {command}", PATH=path)
        assert done.stdout.rstrip("\n").splitlines() == lines, command
        assert done.stderr == ""
