"""YAML files that a user edits: read plain values, or change one in place."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from tiny_llm.atomic import atomic_write
from tiny_llm.errors import ConfigError, InputError

_MAX_BYTES = 1 << 18  # A larger file is data that was given by mistake.
_MAX_INT_BITS = 64  # Longer integers break code that prints or packs them.


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """Read plain values: dictionaries, lists, strings, numbers, booleans, dates, None.

    Raises:
        InputError: There is no such file.
        ConfigError: It is not plain YAML; names the line.
    """
    return _load(path, _read_text(path))


def set_value(
    path: str | os.PathLike[str], section: str, name: str, value: float | str
) -> Any:
    """Change one value; comments, order and everything else stay as they are.

    Args:
        path: Its top level maps sections to mappings of names to values.
        section: For example "bpe".
        name: For example "vocab_size".
        value: A number or a word.

    Returns:
        The old value. The file is not touched if it equals the new one.

    Raises:
        InputError: There is no such file.
        ConfigError: It is not plain YAML, or lacks the value.
    """
    text = _read_text(path)
    try:
        old = _load(path, text)[section][name]
        node: Any = _PlainLoader(text).get_single_node()
        for wanted in (section, name):
            [node] = [value for key, value in node.value if key.value == wanted]
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} lacks {section}.{name}; set it") from error
    if old != value:
        start, end = node.start_mark.index, node.end_mark.index
        new = yaml.safe_dump([value], default_flow_style=True).strip()[1:-1]
        if start == end:
            new = f" {new}"  # Nothing but the colon was there.
        changed = text[:start] + new + text[end:]
        _load(path, changed)
        with atomic_write(path) as file:
            file.write(changed.encode())
    return old


def _read_text(path: str | os.PathLike[str]) -> str:
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    if (size := Path(path).stat().st_size) > _MAX_BYTES:
        raise ConfigError(f"{path} is not plain YAML: it has {size:,} bytes")
    try:
        return Path(path).read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not plain YAML: {error}") from error


def _load(path: str | os.PathLike[str], text: str) -> Any:
    try:
        loader = _PlainLoader(text)
        loader.name = os.fspath(path)  # So errors name the file.
        return loader.get_single_data()
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise ConfigError(f"{path} is not plain YAML: {problem}") from error
    except RecursionError as error:
        raise ConfigError(f"{path} is not plain YAML: too deeply nested") from error


class _PlainLoader(yaml.SafeLoader):
    """Names the place of a value on which PyYAML would fail without saying where.

    For example 2024-13-45, an integer of 5,000 digits, and `!!int x`.
    """

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep=deep)
            if isinstance(value, int) and value.bit_length() > _MAX_INT_BITS:
                raise ValueError
        except (ValueError, KeyError, AttributeError) as error:
            kind = node.tag.rpartition(":")[2]
            problem = f"cannot read {str(node.value)[:40]!r} as {kind}"
            raise yaml.constructor.ConstructorError(
                None, None, problem, node.start_mark
            ) from error
        return value
