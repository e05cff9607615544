"""Sources: a file of any shape as a stream of documents.

A shape is one function that turns an open file into (position, document) pairs, and
one entry in `_SHAPES`. Files called .gz or .zst are decompressed on the way. Memory is
bounded by the longest document.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tiny_llm.checks import check_int
from tiny_llm.corpus import SEPARATOR
from tiny_llm.errors import ConfigError, InputError, ResourceError
from tiny_llm.filekind import (
    COMPRESSED_ENDINGS,
    HEAD_BYTES,
    PARQUET,
    check_is_text,
    check_name,
    find_kind,
)
from tiny_llm.source_files import (
    BLOCK_BYTES,
    OnProgress,
    check_ratio,
    open_file,
    package_missing,
)

# A document is held in memory; this is the limit.
MAX_DOCUMENT_BYTES = 256 << 20

_PARQUET_BATCH_BYTES = 4 << 20
_PARQUET_BATCH_ROWS = 1024
_TEXT_TYPES = ("string", "large_string", "binary", "large_binary")
_UTF8_BOM = b"\xef\xbb\xbf"

Documents = Iterator[tuple[int, bytes]]


@dataclasses.dataclass(frozen=True)
class Reading:
    r"""How files become documents, and documents the splits.

    Attributes:
        text_field: The field of JSON Lines, or the column of Parquet, with the text.
        split_at_blank_lines: Whether documents in text files end at blank lines
            instead of separators.
        separator_in_text: What to do with a document that contains the text of the
            separator: "refuse" it, or "escape" it as `<|endoftext\|>`.
        valid_fraction: Which share of train becomes valid if there is no valid.
        max_documents: Read only the first documents: this many of each split, or of
            both together if there is no valid.

    Raises:
        ConfigError: An attribute has an unusable value.
    """

    text_field: str = "text"
    split_at_blank_lines: bool = False
    separator_in_text: str = "refuse"
    valid_fraction: float = 0.1
    max_documents: int | None = None

    def __post_init__(self) -> None:
        """Check the values, which a user has written."""
        if not isinstance(self.text_field, str) or not self.text_field:
            raise _bad("text_field", self.text_field, "the name of a field or column")
        if not isinstance(self.split_at_blank_lines, bool):
            raise _bad("split_at_blank_lines", self.split_at_blank_lines, "true, false")
        if self.separator_in_text not in ("refuse", "escape"):
            raise _bad("separator_in_text", self.separator_in_text, "refuse or escape")
        if type(self.valid_fraction) is not float or not 0 < self.valid_fraction < 1:
            raise _bad("valid_fraction", self.valid_fraction, "a number such as 0.1")
        if self.max_documents is not None:
            check_int("max_documents", self.max_documents)


def _bad(name: str, value: object, wanted: str) -> ConfigError:
    return ConfigError(f"{name} is {_shorten(repr(value))}; give {wanted}")


@dataclasses.dataclass(frozen=True)
class Shape:
    """What the files of one shape have in common.

    Attributes:
        name: For messages.
        unit: What a position is: a "line" or "row" from 1, or an "offset" from 0.
        read: Turns an open file into (position, document) pairs.
    """

    name: str
    unit: str
    read: Callable[[io.BufferedReader[Any], Path, Reading], Documents]


def read_documents(
    path: Path, reading: Reading, on_progress: OnProgress | None = None
) -> Documents:
    """Read the documents of a file, byte for byte.

    Args:
        path: A text file, JSON Lines or Parquet; the first two may be compressed, if
            the name says so.
        reading: How it becomes documents.
        on_progress: Called with the number of bytes read from the disk since the
            last call.

    Yields:
        The position of each document, for `name_place`, and its bytes. A null in
        JSON Lines or Parquet is an empty document.

    Raises:
        InputError: The file cannot be read as what it is; names the line or row.
        ConfigError: A package that reads it is not installed.
        ResourceError: A document is longer than `MAX_DOCUMENT_BYTES`.
    """
    with open_file(path, on_progress) as file:
        yield from find_shape(path, file).read(file, path, reading)


def find_shape(path: Path, file: io.BufferedReader[Any]) -> Shape:
    """Tell the shape of an open file by its name.

    Raises:
        InputError: It is a Parquet file with another name.
    """
    if find_kind(file.peek(HEAD_BYTES)) == PARQUET and file.seekable():
        check_name(path, PARQUET)
    name = path.name.lower()
    for ending in COMPRESSED_ENDINGS:
        name = name.removesuffix(ending)
    return _SHAPES.get(Path(name).suffix, TEXT)


def name_place(path: Path, position: int) -> str:
    """Describe where a document begins, for example "stories.jsonl, line 3"."""
    with open_file(path) as file:
        return _name_place(path, find_shape(path, file).unit, position)


def _name_place(path: Path, unit: str, position: int) -> str:
    return f"{path}, {unit} {position:,}"


# Shapes


def _read_text(file: io.BufferedReader[Any], path: Path, reading: Reading) -> Documents:
    """A text file: its documents end at separators; without any, it is one."""
    check_is_text(path, file.peek(HEAD_BYTES))
    if reading.split_at_blank_lines:
        yield from _split_at_blank_lines(file, path)
        return
    rest, offset = b"", 0
    # Doubling the read size inside a long document keeps the work linear.
    while block := file.read(max(BLOCK_BYTES, len(rest))):
        *documents, rest = (rest + block).split(SEPARATOR)
        for document in documents:
            yield offset, document
            offset += len(document) + len(SEPARATOR)
        _check_length(path, "offset", offset, rest)
    if offset == 0 and (place := rest.find(0, 0, HEAD_BYTES)) >= 0:
        raise InputError(
            f"{path} is binary, not text (a NUL byte at offset {place}); leave it out, "
            "for example by setting files to *.txt"
        )
    # White space after the last separator is not a document.
    if offset == 0 or (rest and not rest.isspace()):
        yield offset, rest


def _split_at_blank_lines(file: io.BufferedReader[Any], path: Path) -> Documents:
    """Cut at lines of white space, which belong to no document."""
    lines: list[bytes] = []
    start = offset = 0
    for line in iter(partial(file.readline, MAX_DOCUMENT_BYTES + 1), b""):
        if line.isspace():
            if lines:
                yield start, b"".join(lines)
            lines, start = [], offset + len(line)
        else:
            lines.append(line)
        offset += len(line)
        if offset - start > MAX_DOCUMENT_BYTES:
            raise _too_long(path, "offset", start)
    if lines:
        yield start, b"".join(lines)


def _read_json_lines(
    file: io.BufferedReader[Any], path: Path, reading: Reading
) -> Documents:
    """JSON Lines: each line is an object that holds a document; blank lines do not."""
    try:
        from orjson import loads
    except ImportError as error:
        raise package_missing("orjson", f"{path} is JSON Lines") from error
    check_is_text(path, file.peek(HEAD_BYTES))
    field = reading.text_field
    lines = iter(partial(file.readline, MAX_DOCUMENT_BYTES + 1), b"")
    for number, line in enumerate(lines, 1):
        try:
            document = loads(line)[field].encode()
        except (ValueError, LookupError, TypeError, AttributeError):
            if line.isspace():
                continue
            _check_length(path, "line", number, line)
            if number == 1 and line.startswith(_UTF8_BOM):
                line = line.removeprefix(_UTF8_BOM)
            document = _parse_line(line, field, _name_place(path, "line", number))
        yield number, document


def _parse_line(line: bytes, field: str, place: str) -> bytes:
    """Find the document in a line for which the quick way failed, or say why."""
    import orjson

    begin = _shorten(repr(line[:200]))
    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        hint = "correct or remove the line"
        if line.strip() in (b"{", b"["):
            hint = "JSON Lines has one object in each line (`jq -c` writes it so)"
        raise InputError(
            f"{place} is not JSON; {hint} ({error.msg} at character {error.pos + 1} of "
            f"{begin})"
        ) from error
    if not isinstance(found, dict):
        raise InputError(
            f"{place} is not a JSON object; JSON Lines has one in each line, such as "
            f'{{"{field}": "Once upon a time"}}, and here is {begin}'
        )
    if field not in found:
        raise InputError(f"{place} {_field_missing('field', field, list(found))}")
    text = found[field]
    if text is None:
        return b""
    if not isinstance(text, str):
        raise InputError(
            f"{place}: correct it or set text_field to a field of text, since "
            f"{field!r} is {_shorten(json.dumps(text))}"
        )
    return text.encode()


def _read_parquet(
    file: io.BufferedReader[Any], path: Path, reading: Reading
) -> Documents:
    """Parquet: each row of a column of text is a document."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise package_missing("pyarrow", f"{path} is {PARQUET}") from error
    if not file.seekable():
        raise InputError(f"{path} is a compressed Parquet file; decompress it first")
    field, number, num_bytes = reading.text_field, 1, 0
    num_compressed = path.stat().st_size
    try:
        # Not pyarrow.dataset: its memory grows (github.com/apache/arrow, issue 39808).
        # pre_buffer, on by default, would hold the compressed file in memory.
        with parquet.ParquetFile(
            file, buffer_size=BLOCK_BYTES, pre_buffer=False
        ) as table:
            _check_column(path, field, table.schema_arrow)
            for batch in table.iter_batches(_batch_rows(table.metadata), None, [field]):
                column = batch.column(0)
                if pa.types.is_dictionary(column.type):
                    column = column.dictionary_decode()
                num_bytes += column.nbytes
                check_ratio(path, num_bytes, num_compressed)
                for document in column.cast(pa.large_binary()).to_pylist():
                    yield number, document or b""
                    number += 1
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{path} is not a Parquet file, or damaged or incomplete after row "
            f"{number - 1:,}; get it again: {_shorten(str(error))}"
        ) from error


def _batch_rows(metadata: Any) -> int:
    """How many rows to read at a time, so that memory stays flat."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    row_bytes = max(
        (g.total_byte_size // max(1, g.num_rows) for g in groups), default=1
    )
    return max(1, min(_PARQUET_BATCH_ROWS, _PARQUET_BATCH_BYTES // max(1, row_bytes)))


def _check_column(path: Path, field: str, schema: Any) -> None:
    if field not in schema.names:
        raise InputError(f"{path} {_field_missing('column', field, schema.names)}")
    kind = schema.field(field).type
    if str(getattr(kind, "value_type", kind)) not in _TEXT_TYPES:
        raise InputError(
            f"{path}: set text_field to a column of text, since {field!r} holds "
            f"{_shorten(str(kind))}"
        )


_SHAPES = {
    ".jsonl": Shape("JSON Lines", "line", _read_json_lines),
    ".ndjson": Shape("JSON Lines", "line", _read_json_lines),
    ".json": Shape("JSON Lines", "line", _read_json_lines),
    ".parquet": Shape("Parquet", "row", _read_parquet),
}
TEXT = Shape("text", "offset", _read_text)


# Messages


def _field_missing(kind: str, field: str, names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:10])) or "none"
    more = f" and {len(names) - 10:,} more" if len(names) > 10 else ""
    return (
        f"has no {kind} {field!r}; set text_field to one that it has: "
        f"{_shorten(shown)}{more}"
    )


def _check_length(path: Path, unit: str, position: int, text: bytes) -> None:
    if len(text) > MAX_DOCUMENT_BYTES:
        raise _too_long(path, unit, position)


def _too_long(path: Path, unit: str, position: int) -> ResourceError:
    return ResourceError(
        f"{_name_place(path, unit, position)}: a document of more than "
        f"{MAX_DOCUMENT_BYTES:,} bytes, the limit; divide it"
    )


def _shorten(text: str, limit: int = 200) -> str:
    text = " ".join(text[: limit + 1].split())
    return text if len(text) <= limit else f"{text[:limit]}..."
