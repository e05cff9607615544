"""The report: complete, safe, deterministic, small, and readable in a browser."""

import html.parser
import json
import re

import pytest
import yaml

from tests.browser import open_offline
from tests.conftest import ROOT, SEP, expect, run_up_to
from tests.test_layout import stages
from tiny_llm.report.run import list_token_bytes
from tiny_llm.report.tokens import TokenPainter
from tiny_llm.tokenize import BPETokenizer
from tiny_llm.tokens import open_tokens

HOSTILE = (
    '<script>alert(1)</script> <img src=x onerror="alert(2)"> </style> \' " & '
    "\u202e\u2066 \x1b[31m </article></main> "
)

# As stage `leakage` writes it, see tiny_llm/leakage.py.
LEAKAGE = {
    "format_version": 1,
    "window": 32,
    "max_share": None,
    "clean_valid": False,
    "shingle_words": 5,
    "min_similarity": 0.75,
    "train": {"num_tokens": 500, "num_documents": 5, "sha256": "0" * 64},
    "valid": {"num_tokens": 400, "num_documents": 5, "sha256": "1" * 64},
    "metrics": {
        "leaked_share": 0.0123,
        "overlap_share": 0.0101,
        "longest_run": 112,
        "leaked_documents": 2,
        "exact_duplicates": {"across": 1, "within_train": 7, "within_valid": 0},
        "near_duplicates": {"across": 3, "within_valid": 0},
    },
    "examples": [
        {
            "kind": "near",
            "valid_document": 17,
            "train_document": 20311,
            "num_tokens": 180,
            "num_shared": 120,
            "similarity": 0.934,
            "valid": {"text": f"A cat{HOSTILE}", "shared": [[2, 8]], "is_cut": False},
            "train": {"text": "The cat <b>", "shared": [[4, 11]], "is_cut": True},
        }
    ],
}


class Page(html.parser.HTMLParser):
    """The tags of a page, what their attributes are, and its text."""

    def __init__(self, data: bytes):
        super().__init__()
        self.tags, self.attributes, self.text = set(), [], ""
        self._skip = False
        self.feed(data.decode())

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes += attributes
        self._skip = tag == "style"

    def handle_data(self, data):
        self.text += "" if self._skip else data
        self._skip = False


def write_report(workspace, **env) -> bytes:
    done = workspace.stage("report", **env)
    assert done.returncode == 0, done.stderr
    page = (workspace.path / "build" / "report.html").read_bytes()
    assert done.stderr == (
        f"wrote build/report.html: {len(page):,} bytes; open it in a browser\n"
    )
    return page


def report_on(workspace, train: bytes, valid: bytes, leakage=None) -> bytes:
    """Run all stages; `leakage` replaces what its stage found."""
    (workspace.source / "train.txt").write_bytes(train)
    (workspace.source / "valid.txt").write_bytes(valid)
    run_up_to(workspace, "leakage")
    if leakage:
        path = workspace.path / "build" / "leakage.json"
        path.write_text(json.dumps(leakage))
    return write_report(workspace)


def test_the_report_says_what_the_run_was(workspace, text):
    page = Page(report_on(workspace, text * 3, text))
    for value in (
        str(workspace.source),
        "4096",
        f"{3 * len(text):,} bytes",
        f"{len(text):,} bytes",
        *(
            json.loads(
                (workspace.path / "build" / "tokens" / f"{split}.json").read_bytes()
            )["sha256"]
            for split in ("train", "valid")
        ),
        BPETokenizer.load(workspace.path / "build" / "tokenizer.json").sha256,
    ):
        assert value in page.text
    for title in (
        "Document lengths",
        "Token frequency by rank",
        "Merge counts",
        "Bytes per token against vocab size",
        "Longest tokens",
        "Rarest tokens",
        "Merges that train never uses",
        "Leakage",
    ):
        assert title in page.text


def test_the_page_loads_nothing_and_has_no_script(workspace, text):
    page = Page(report_on(workspace, text, text))
    assert not page.tags & {"script", "img", "iframe", "object", "form", "base"}
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    links = [value for name, value in page.attributes if name in ("href", "src")]
    assert all(link.startswith(("#", "data:")) for link in links)
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert ("content", policy) in page.attributes


def test_text_of_the_corpus_never_becomes_markup(workspace, text):
    harmless = Page(report_on(workspace, text, text))
    hostile = HOSTILE.encode()
    source = workspace.source.rename(workspace.source.with_name('<b a="">\'&'))
    workspace.source = source
    workspace.set_param("source", json.dumps(str(source)))
    data = report_on(
        workspace,
        (hostile * 50 + SEP) * 20 + text,
        hostile + SEP + b"\xff\x00" + SEP,
        LEAKAGE,
    )
    page = Page(data)
    assert page.tags - harmless.tags == {"mark"}  # Of the examples of leakage.
    assert "<script>alert(1)</script>" in page.text
    assert str(source) in page.text
    for char in "\u202e\u2066\x1b\x00":
        assert char not in data.decode()
    assert r"\u202e" in page.text


def test_the_same_run_gives_the_same_page(workspace, text):
    first = report_on(workspace, text * 5, text)
    again = write_report(
        workspace, TZ="Pacific/Auckland", LC_ALL="C", PYTHONHASHSEED="7"
    )
    assert again == first


def test_the_page_stays_small_for_giant_documents_and_tokens(workspace):
    words = b" ".join(b"%d" % (number * 7919) for number in range(20_000))
    giant = b"=" * 4000 + b" " + words + SEP
    page = report_on(workspace, giant * 8, giant * 8)
    assert len(page) < 1_000_000
    assert "more tokens" in Page(page).text


@pytest.mark.parametrize(
    ("train", "valid"),
    [(b"a", b"b"), (b"a" + SEP, b"bb" + SEP), (b"ab" * 40 + SEP, b"\xff" + SEP + SEP)],
)
def test_the_smallest_texts_have_a_report(workspace, train, valid):
    workspace.set_param("vocab_size", 257)
    assert "Merge counts" not in Page(report_on(workspace, train, valid)).text
    workspace.set_param("vocab_size", 300)
    report_on(workspace, train, valid)


@pytest.mark.parametrize(
    "name",
    [
        "build/tokenizer.json",
        "build/id_counts-valid.npy",
        "build/leakage.json",
        "build/tokens/train.bin",
        "build/tokens/valid.json",
        "reports/fetch.json",
        "reports/merge_counts.csv",
        "reports/document_lengths-train.csv",
    ],
)
def test_a_missing_input_is_named(workspace, name):
    run_up_to(workspace, "leakage")
    (workspace.path / name).unlink()
    expect(workspace.stage("report"), 3, name)
    assert not (workspace.path / "build" / "report.html").exists()


def test_leakage_is_shown_with_its_examples(workspace, text):
    data = report_on(workspace, text, text, LEAKAGE)
    page = Page(data)
    for words in ("1.23% of valid's tokens", "nearly the same text", "20,311", "0.93"):
        assert words in page.text
    assert b"A <mark>cat&lt;sc</mark>ript&gt;" in data
    assert b"The <mark>cat &lt;b&gt;</mark>" in data


def test_every_token_carries_its_id_and_its_bytes(workspace, text):
    page = report_on(workspace, text * 5, text).decode()
    ids, _ = open_tokens(workspace.path / "build" / "tokens" / "valid.bin")
    shown = re.findall(r'title="id (\d+) . \d* ?bytes? . ([^"]*)"', page)
    vocab = BPETokenizer.load(workspace.path / "build" / "tokenizer.json")
    for token_id, data in shown:
        token_bytes = vocab.token_bytes(int(token_id))
        assert token_bytes.hex(" ").startswith(data.removesuffix(" \u2026"))
    stories = page[page.index('<section id="stories">') :]
    in_stories = [int(i) for i in re.findall(r'title="id (\d+) ', stories)]
    assert in_stories[-len(ids) :] == ids.tolist()  # The text is short enough.


def test_a_character_in_several_tokens_is_shown_whole_in_the_last():
    painter = TokenPainter(list_token_bytes([], SEP))
    spans = re.findall(r">([^<]*)</span>", painter.paint("a\u00e9\u4f60".encode()))
    assert spans == ["a", "\u2591", "\u00e9", "\u2591", "\u2591", "\u4f60"]
    assert painter.paint(b"\xc3").endswith("</span>\\xc3")
    assert painter.paint([0xC3, 256]).endswith(">\\xc3&lt;|endoftext|&gt;</span>")


def test_the_stage_depends_on_every_section_of_params_and_on_its_style():
    """The page shows all parameters."""
    report = stages()["report"]
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert report["params"] == list(params)
    assert "tiny_llm/report/style.css" in report["deps"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_report_opens_offline_and_fits_the_screen(
    built_clone, browser, width, scheme
):
    path = built_clone.path / "build" / "report.html"
    assert path.stat().st_size < 500_000
    with open_offline(browser, path, width, scheme) as page:
        assert page.errors == []
        assert [url for url in page.requests if not url.startswith("data:")] == [
            path.as_uri()
        ]
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.locator(".chart svg path.train").count() >= 3
        assert page.locator(".story").count() == 12
        sizes = page.locator(".plot").evaluate_all("all => all.map(p => p.clientWidth)")
        assert min(sizes) > 250


def test_pointing_at_a_token_or_a_chart_shows_numbers(built_clone, browser):
    with open_offline(browser, built_clone.path / "build" / "report.html") as page:
        for selector, words in ((".story .t4", "id "), (".plot i", "tokens ")):
            element = page.locator(selector).first
            element.scroll_into_view_if_needed()
            element.hover()
            shown = element.evaluate("one => getComputedStyle(one, '::after').content")
            assert shown.startswith(f'"{words}')


def test_text_can_be_read_on_its_background(built_clone, browser):
    """WCAG asks for a contrast of 4.5."""
    for scheme in ("light", "dark"):
        path = built_clone.path / "build" / "report.html"
        with open_offline(browser, path, scheme=scheme) as page:
            for selector in (
                "p",
                "h1",
                ".note",
                ".byte",
                ".sep",
                ".t0",
                ".t4",
                ".more",
            ):
                element = page.locator(f"body {selector}").first
                ratio = element.evaluate(CONTRAST)
                assert ratio >= 4.5, (scheme, selector)


CONTRAST = """one => {
  const light = color => {
    const [r, g, b] = color.match(/[\\d.]+/g).slice(0, 3).map(part => {
      const x = part / 255;
      return x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  let under = one;
  while (getComputedStyle(under).backgroundColor === "rgba(0, 0, 0, 0)")
    under = under.parentElement;
  const pair = [getComputedStyle(one).color, getComputedStyle(under).backgroundColor];
  const [a, b] = pair.map(light).sort((x, y) => y - x);
  return (a + 0.05) / (b + 0.05);
}"""
