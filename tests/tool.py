"""Runs the command tiny-llm for tests, as a user runs it."""

import json
import os
import subprocess
import sys

from tests.conftest import ROOT

COMMAND = [sys.executable, "-m", "tiny_llm.cli"]


def run(folder, *arguments, given=b"", status=0, **env):
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        input=given,
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == status, done.stderr.decode()
    if status == 0:
        assert done.stderr == b""
    return done


def show(folder, *arguments, **options):
    return run(folder, *arguments, **options).stdout.decode()


def load(folder, *arguments, **options):
    return json.loads(run(folder, *arguments, "--json", **options).stdout)


def refuse(folder, status, *arguments, **options):
    """Check for one readable line on stderr; return it."""
    done = run(folder, *arguments, status=status, **options)
    [line] = done.stderr.decode().splitlines()
    assert line.startswith(f"tiny-llm {arguments[0]}: error: ")
    assert done.stdout == b""
    return line
