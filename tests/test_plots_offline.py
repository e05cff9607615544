"""`dvc plots` without a network: real DVC, a real browser, and no connection."""

import pytest

from tests.browser import open_offline
from tests.conftest import ROOT
from tools.plots_page import PAGE, page


def open_plots(clone, browser, *command):
    url = clone.dvc("plots", *command).stdout.split()[-1]
    assert url.endswith("/dvc_plots/index.html")
    return open_offline(browser, clone.path / "dvc_plots" / "index.html")


def check_plots(opened, num_plots):
    """Every plot is drawn, and nothing was asked of the network."""
    drawn = opened.locator(".vega-embed :is(canvas, svg.marks)")
    assert drawn.count() == num_plots
    assert min(drawn.evaluate_all("all => all.map(one => one.clientWidth)")) >= 300
    levels = [getattr(error, "type", "page error") for error in opened.errors]
    assert set(levels) <= {"warning"}, opened.errors
    assert [url for url in opened.requests if not url.startswith("data:")] == [
        opened.url
    ]


def test_plots_show_is_drawn_without_a_network(built_clone, browser, tmp_path):
    clone = built_clone.copy(tmp_path / "clone")
    with open_plots(clone, browser, "show") as opened:
        check_plots(opened, 7)
        text = opened.content()
        assert "token_frequency-valid.csv" in text
        assert "cdn.jsdelivr.net" not in text


def test_plots_diff_is_drawn_without_a_network(clone, browser):
    path = clone.path / "reports" / "merge_counts.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:200]))
    with open_plots(clone, browser, "diff") as opened:
        check_plots(opened, 7)
        assert ">HEAD</text>" in opened.content()


def test_train_and_valid_are_in_one_plot(built_clone, browser):
    spec = built_clone.dvc(
        "plots", "show", "--show-vega", "Document lengths in tokens"
    ).stdout
    for split in ("train", "valid"):
        assert f'"filename": "document_lengths-{split}.csv"' in spec
    assert '"strokeDash": {"field": "filename"' in " ".join(spec.split())


def test_the_page_in_git_is_what_the_tool_writes():
    assert (ROOT / PAGE).read_bytes() == page(), "run `make plots-page`"


@pytest.mark.parametrize("folder", [".dvc", "examples/sweep/.dvc"])
def test_a_clone_has_the_page_that_its_config_names(fresh_clone, folder):
    config = (fresh_clone.path / folder / "config").read_text()
    [name] = [
        line.split("=")[1].strip()
        for line in config.splitlines()
        if "html_template" in line
    ]
    assert (ROOT / folder / name).resolve() == ROOT / PAGE
    assert fresh_clone.git("ls-files", str(PAGE)).strip() == str(PAGE)


@pytest.mark.parametrize("notice", ["BSD-3-Clause", "University of Washington", "ISC"])
def test_the_page_carries_the_licences_of_what_it_contains(notice):
    head, _, _ = page().decode().partition("<script>")
    assert notice in head
