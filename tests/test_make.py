"""Makefile: the table of experiments, and the checks."""

import pytest

from tests.conftest import ROOT


@pytest.fixture
def clone(clone):
    """A built clone in which `make` has nothing to install."""
    (clone.path / ".venv").mkdir()
    for name in ("repro", "test"):
        (clone.path / ".venv" / f"{name}.done").touch()
    for name in ("MAKEFLAGS", "MAKELEVEL"):  # `make test` may run this test.
        clone.env.pop(name, None)
    return clone


def test_compare_shows_vocab_size_and_bytes_per_token_of_every_experiment(clone):
    clone.dvc("exp", "run", "--name", "tiny", "-S", "bpe.vocab_size=300")
    clone.dvc("exp", "run", "--queue", "--name", "waits", "-S", "bpe.vocab_size=600")
    clone.set_param("vocab_size", 4096)
    clone.dvc("repro")

    table = clone.run("make", "compare").stdout
    heads, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table.strip().splitlines()
    ]
    assert heads[0] == "Experiment"
    assert heads[1].endswith("valid.json:bytes_per_token")
    assert heads[2:] == ["bpe.vocab_size"]
    assert max(map(len, table.splitlines())) <= 88
    vocab_sizes = {row[0].split(" ")[-1].strip("[]"): row[2] for row in rows}
    assert vocab_sizes == {
        "workspace": "4096",
        "main": "4096",
        "tiny": "300",
        "waits": "600",
    }
    measured = {row[2]: float(row[1]) for row in rows if row[2] != "600"}
    assert 1 < measured["300"] < measured["4096"] == 3.9699


def test_repro_ends_with_the_path_of_the_report(clone):
    for report in (clone.path / "build" / "report.html", None):
        if report:
            report.unlink()
        last = clone.run("make", "repro").stdout.splitlines()[-1]
        assert f"open {clone.path}/build/report.html in a browser" in last
        assert (clone.path / "build" / "report.html").is_file()


def test_an_outdated_picture_fails_the_check_until_it_is_drawn_again(clone):
    path = clone.path / "reports" / "merge_counts.csv"
    path.write_text(path.read_text().replace("3839,27,", "3839,28,"))
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
    # Ray and other trainers, 80 and 100 MB, are for those who use them: not in `make
    # check`.
    assert targets == ["repro", "test", "check-rest", "cluster-check", "readers-check"]
    covered = clone.run("make", "--dry-run", "check").stdout.splitlines()
    for target in targets[1:-2]:
        commands = clone.run("make", "--dry-run", target).stdout.splitlines()
        assert set(commands) <= set(covered)
