"""Files that are not plain text, recognized by their first bytes.

They would encode without an error, into a useless token file. Names are not trusted:
a gzip file may be called stories.txt, and is then refused.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from tiny_llm.errors import InputError

# How much of a file `find_kind` and `check_is_text` need.
HEAD_BYTES = 4096

GZIP = "a gzip file"
ZSTD = "a zstd file"
PARQUET = "a Parquet file"

# A compressed file is decompressed only if its name ends in the right one of these.
COMPRESSED_ENDINGS = {".gz": GZIP, ".gzip": GZIP, ".zst": ZSTD, ".zstd": ZSTD}
_ENDINGS = {**COMPRESSED_ENDINGS, ".parquet": PARQUET}

# With fewer bytes, UTF-16 cannot be told from text with a stray NUL.
_MIN_WIDE_BYTES = 8

_KINDS = [
    (re.compile(pattern, re.DOTALL), kind, remedy)
    for pattern, kind, remedy in (
        (rb"\x1f\x8b", GZIP, "decompress it first (gunzip)"),
        # The second form is a frame to skip, with which pzstd begins its files.
        (
            rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18",
            ZSTD,
            "decompress it first (unzstd)",
        ),
        (rb"\xfd7zXZ\x00", "an xz file", "decompress it first (unxz)"),
        (
            rb"BZh[1-9](1AY&SY|\x17rE8P\x90)",
            "a bzip2 file",
            "decompress it first (bunzip2)",
        ),
        (rb"PK(\x03\x04|\x05\x06)", "a zip file", "unpack it first (unzip)"),
        (
            rb"PAR1[^\t\n\r -~]",
            PARQUET,
            "write its text column to a text file first",
        ),
        (rb".{257}ustar", "a tar archive", "unpack it first (tar -xf)"),
        (rb"%PDF-", "a PDF file", "extract its text first (pdftotext)"),
        (
            rb"\xff\xfe\x00\x00|\x00\x00\xfe\xff",
            "UTF-32 text",
            "convert it to UTF-8 first (iconv -f UTF-32 -t UTF-8)",
        ),
        (
            rb"\xff\xfe|\xfe\xff",
            "UTF-16 text",
            "convert it to UTF-8 first (iconv -f UTF-16 -t UTF-8)",
        ),
    )
]


def find_kind(head: bytes) -> str | None:
    r"""Name what a file is by its first `HEAD_BYTES`; None if it may be plain text.

    >>> find_kind(b"PAR1\x15\x04")
    'a Parquet file'
    >>> find_kind(b"Once upon a time")
    """
    for pattern, kind, _ in _KINDS:
        if pattern.match(head):
            return kind
    return None


def check_name(path: Path, kind: str) -> None:
    """Check that the name of a gzip, zstd or Parquet file says what it is.

    Raises:
        InputError: It is called something else.
    """
    if _ENDINGS.get(path.suffix.lower()) != kind:
        ending = next(end for end in _ENDINGS if _ENDINGS[end] == kind)
        raise InputError(
            f"{path} is {kind}, but its name does not say so; give it a name (or URL) "
            f"that ends in {ending}"
        )


def check_is_text(path: str | os.PathLike[str], head: bytes) -> None:
    """Refuse a file that begins like something other than plain text.

    Args:
        path: Named in the message.
        head: The first `HEAD_BYTES` of the file, or all of a shorter one.

    Raises:
        InputError: It is compressed, an archive, Parquet, PDF, UTF-16 or UTF-32.
    """
    for pattern, kind, remedy in _KINDS:
        if pattern.match(head):
            raise InputError(f"{path} is {kind}; {remedy}")
    if encoding := _find_wide_encoding(head):
        raise InputError(
            f"{path} is {encoding} text without a byte order mark; convert it to "
            f"UTF-8 first (iconv -f {encoding} -t UTF-8)"
        )


def _find_wide_encoding(head: bytes) -> str | None:
    """Recognize UTF-16 and UTF-32 by the NUL bytes of their ASCII characters.

    >>> _find_wide_encoding("Once upon a time".encode("utf-16-le"))
    'UTF-16LE'
    """
    # The share of NULs at each position in a four-byte character.
    nuls = [head[i::4].count(0) / len(head[i::4] or b" ") for i in range(4)]
    if len(head) < _MIN_WIDE_BYTES:
        return None
    if min(nuls[2], nuls[3]) > 0.9 and nuls[0] < 0.1:
        return "UTF-32LE"
    if min(nuls[0], nuls[1]) > 0.9 and nuls[3] < 0.1:
        return "UTF-32BE"
    if min(nuls[1], nuls[3]) > 0.5 and nuls[0] == nuls[2] == 0:
        return "UTF-16LE"
    if min(nuls[0], nuls[2]) > 0.5 and nuls[1] == nuls[3] == 0:
        return "UTF-16BE"
    return None
