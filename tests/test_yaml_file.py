"""YAML that a user edits: odd values are named, one number changes in place."""

import datetime as dt
import math

import pytest

from tests.conftest import ROOT, expect
from tiny_llm.errors import ConfigError, InputError
from tiny_llm.pins import read_pins
from tiny_llm.yaml_file import read_yaml, set_value

ODD_VALUES = {
    "2024-13-45": "cannot read '2024-13-45' as timestamp",
    "9" * 5000: "cannot read '999",
    "0x" + "f" * 5000: "cannot read '0xfff",
    "!!int x": "cannot read 'x' as int",
    "!!bool x": "cannot read 'x' as bool",
    "!!float x": "cannot read 'x' as float",
    "!!timestamp x": "cannot read 'x' as timestamp",
    "!!python/object/apply:os.getcwd []": "could not determine a constructor",
    "[" * 3000 + "]" * 3000: "too deeply nested",
    "[": "not plain YAML",
    "\x07": "not plain YAML",
    "{[]: 1}": "unhashable key",
}
odd_values = pytest.mark.parametrize(
    ("value", "message"), ODD_VALUES.items(), ids=lambda value: value[:20]
)


@odd_values
def test_an_odd_value_is_named_in_one_line(tmp_path, value, message):
    (tmp_path / "odd.yaml").write_text(f"fetch:\n  source: {value}\n")
    with pytest.raises(ConfigError) as caught:
        read_yaml(tmp_path / "odd.yaml")
    line = str(caught.value)
    assert message in line
    assert "odd.yaml is not plain YAML" in line
    assert "\n" not in line
    assert len(line) < 400 + len(str(tmp_path))


@odd_values
def test_a_manifest_with_an_odd_value_is_refused(tmp_path, value, message):
    (tmp_path / "pins.yaml").write_text(f"train: {{url: {value}}}")
    with pytest.raises(ConfigError, match="is not plain YAML"):
        read_pins(tmp_path / "pins.yaml")


@pytest.mark.parametrize("value", ["2024-13-45", "9" * 5000, "!!int x", "[" * 3000])
@pytest.mark.parametrize("stage", ["fetch", "bpe"])
def test_params_with_an_odd_value_end_a_stage_in_one_line(workspace, stage, value):
    workspace.set_param("source", value)
    expect(workspace.stage(stage), 2, "params.yaml is not plain YAML")


def test_values_keep_their_types(tmp_path):
    path = tmp_path / "plain.yaml"
    path.write_text("a: 1\nb: 0.5\nc: x\nd: [true, null]\ne: 2024-12-31\n")
    assert read_yaml(path) == {
        "a": 1,
        "b": 0.5,
        "c": "x",
        "d": [True, None],
        "e": dt.date(2024, 12, 31),
    }


def test_bytes_that_are_not_utf8_are_refused(tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"a: caf\xe9\n")
    with pytest.raises(ConfigError, match=r"latin\.yaml is not plain YAML"):
        read_yaml(tmp_path / "latin.yaml")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gone\.yaml: no such file"):
        read_yaml(tmp_path / "gone.yaml")
    with pytest.raises(InputError, match=r"gone\.yaml: no such file"):
        set_value(tmp_path / "gone.yaml", "bpe", "vocab_size", 512)


def test_one_number_changes_and_everything_else_stays(tmp_path):
    path = tmp_path / "params.yaml"
    text = (ROOT / "params.yaml").read_text()
    path.write_text(text)
    assert set_value(path, "bpe", "vocab_size", 2048) == 4096
    assert path.read_text() == text.replace("vocab_size: 4096", "vocab_size: 2048")
    assert set_value(path, "bpe", "vocab_size", 4096) == 2048
    assert path.read_text() == text


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("bpe: {vocab_size: 7, n: 1} # odd\n", "bpe: {vocab_size: 512, n: 1} # odd\n"),
        ("n: 1\r\nbpe:\r\n vocab_size: 7\r\n", "n: 1\r\nbpe:\r\n vocab_size: 512\r\n"),
        ("bpe:\n  vocab_size:\n  n: 1\n", "bpe:\n  vocab_size: 512\n  n: 1\n"),
        ('"bpe":\n  "vocab_size": "7"', '"bpe":\n  "vocab_size": 512'),
        ("é: 1\nbpe: {vocab_size: 7}\n", "é: 1\nbpe: {vocab_size: 512}\n"),
    ],
)
def test_a_number_is_found_in_any_style_of_yaml(tmp_path, before, after):
    path = tmp_path / "params.yaml"
    path.write_bytes(before.encode())
    set_value(path, "bpe", "vocab_size", 512)
    assert path.read_bytes().decode() == after


def test_a_change_that_would_break_the_file_is_refused(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("bpe:\n  vocab_size: &size 7\n  n: *size\n")
    with pytest.raises(ConfigError, match="undefined alias"):
        set_value(path, "bpe", "vocab_size", 512)
    assert "&size 7" in path.read_text()


@pytest.mark.parametrize("value", [0.5, 1e-05, 1e22, 3])
def test_a_number_is_read_back_as_it_was_set(tmp_path, value):
    path = tmp_path / "params.yaml"
    path.write_text("bpe:\n  sample_mb: 10\n")
    set_value(path, "bpe", "sample_mb", value)
    assert math.isclose(read_yaml(path)["bpe"]["sample_mb"], value, rel_tol=0)


def test_a_word_is_read_back_as_it_was_set(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("bpe:\n  sample_mb: 10 # MiB\n")
    assert set_value(path, "bpe", "sample_mb", "all") == 10
    assert path.read_text() == "bpe:\n  sample_mb: all # MiB\n"
    assert set_value(path, "bpe", "sample_mb", 3) == "all"


@pytest.mark.parametrize("text", ["", "bpe:\n", "bpe: 3\n", "bpe: {}\n", "[bpe]\n"])
def test_a_number_that_is_not_there_is_refused(tmp_path, text):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"lacks bpe\.vocab_size; set it"):
        set_value(path, "bpe", "vocab_size", 512)
    assert path.read_text() == text
