"""Makefile: checks fail when they should, and cover everything that CI checks."""

import pytest

from tests.conftest import ROOT


@pytest.fixture
def clone(clone):
    """A built clone in which `make` has nothing to install."""
    (clone.path / ".venv").mkdir()
    for name in ("repro", "test"):
        (clone.path / ".venv" / f"{name}.done").touch()
    return clone


def test_an_outdated_picture_fails_the_check_until_it_is_drawn_again(clone):
    path = clone.path / "reports" / "merge_counts.csv"
    path.write_text(path.read_text().replace("3839,27\n", "3839,28\n"))
    done = clone.run("make", "picture-check", check=False)
    assert done.returncode != 0
    assert "reports/plots.svg does not show the current data" in done.stderr
    assert "loss.svg" not in done.stderr
    assert "Traceback" not in done.stderr
    clone.run("make", "picture")
    clone.run("make", "picture-check")


def test_make_check_covers_everything_that_ci_checks(clone):
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    targets = [line.split()[1] for line in lines if line.startswith("make ")]
    assert targets == ["repro", "test", "check-rest"]
    covered = clone.run("make", "--dry-run", "check").stdout.splitlines()
    for target in targets[1:]:
        commands = clone.run("make", "--dry-run", target).stdout.splitlines()
        assert set(commands) <= set(covered)
