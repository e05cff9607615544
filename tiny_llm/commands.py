"""What the subcommands of `tiny-llm` do: each returns what is to be shown.

Modules are imported where they are used, so that each command starts fast.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tiny_llm.errors import ConfigError, InputError, IntegrityError
from tiny_llm.layout import SPLITS, TOKENIZER_PATH, TOKENS_DIR

if TYPE_CHECKING:
    import numpy.typing as npt

    from tiny_llm.excerpts import Excerpt
    from tiny_llm.manifest import Manifest
    from tiny_llm.tokenize import BPETokenizer


class Result(NamedTuple):
    """What is to be shown.

    Attributes:
        values: For JSON.
        text: For people; bytes are shown as they are.
        errors: What failed, if the command went on after it.
    """

    values: object
    text: str | bytes
    errors: Sequence[InputError | IntegrityError] = ()


def inspect(
    file: str,
    at: int | None,
    random: int | None,
    documents: int,
    tokenizer: Path | None,
) -> Result:
    """Show what a token file holds, and some of its text, token by token.

    The first documents are shown, or those from --at or --random on.
    """
    from tiny_llm.excerpts import read_excerpts, show_borders, split_text
    from tiny_llm.tokens import open_tokens

    path = _find_file(file)
    ids, manifest = open_tokens(path)
    excerpts = read_excerpts(path, at=at, seed=random, num_documents=documents)
    decoder, tokenizer_path = _find_tokenizer(path, manifest, tokenizer)
    lines = [str(path), *_facts(ids, manifest, tokenizer_path)]
    values = []
    for excerpt in excerpts:
        pieces = split_text(decoder, excerpt.ids) if decoder else []
        shown = show_borders(pieces) or " ".join(map(str, excerpt.ids.tolist()))
        lines += ["", _heading(excerpt), shown]
        if excerpt.num_left_out:
            lines += [f"... and {excerpt.num_left_out:,} more ids"]
        values.append(
            {
                "document": excerpt.document,
                "begin": excerpt.begin,
                "num_left_out": excerpt.num_left_out,
                **_tokens(excerpt.ids, pieces),
            }
        )
    described = {
        "path": str(path),
        "num_tokens": len(ids),
        "dtype": ids.dtype.name,
        "manifest": _short(manifest) if manifest else None,
        "tokenizer": str(tokenizer_path) if tokenizer_path else None,
    }
    return Result({**described, "excerpts": values}, "\n".join(lines) + "\n")


def verify(files: list[str], tokenizer: Path | None) -> Result:
    """Compare every byte of token files with their manifests.

    Damaged ranges are named, and the status is then 4. With a tokenizer, it is also
    verified that this one made the ids.
    """
    from tiny_llm.manifest import read_manifest
    from tiny_llm.verify import verify as verify_file

    values: list[dict[str, Any]] = []
    lines = []
    errors: list[InputError | IntegrityError] = []
    for file in files or SPLITS:
        path = _find_file(file)
        try:
            manifest = read_manifest(path)
            maker, maker_path = _find_tokenizer(path, manifest, tokenizer)
            verify_file(path, maker.sha256 if maker else None)
        except (InputError, IntegrityError) as error:
            errors.append(error)
            values.append({"path": str(path), "error": str(error)})
        else:
            maker_name = str(maker_path) if maker else None
            values.append(
                {"path": str(path), "tokenizer": maker_name, **_short(manifest)}
            )
            made_by = f"made by {maker_name}" if maker else "tokenizer not verified"
            lines.append(
                f"verified {path}: {manifest.num_tokens:,} ids, "
                f"sha256 {manifest.sha256[:12]}..., {made_by}\n"
            )
    return Result(values, "".join(lines), errors)


def encode(text: list[str], tokenizer: Path | None) -> Result:
    """Turn text into token ids.

    The text comes from the arguments, joined by spaces, or from stdin, byte for byte.
    """
    from tiny_llm.excerpts import split_text

    coder = _load_tokenizer(tokenizer)
    given = os.fsencode(" ".join(text)) if text else _read_stdin()
    ids = coder.encode(given)
    values = {"num_bytes": len(given), **_tokens(ids, split_text(coder, ids))}
    return Result(values, " ".join(map(str, ids.tolist())) + "\n")


def decode(ids: list[str], tokenizer: Path | None) -> Result:
    """Turn token ids back into text, byte for byte.

    Ids are separated by white space or commas; brackets are ignored, so a Python list
    may be pasted.
    """
    import numpy as np

    from tiny_llm.excerpts import split_text

    coder = _load_tokenizer(tokenizer)
    given = " ".join(ids) if ids else _read_stdin().decode(errors="replace")
    words = re.sub(r"[\[\],]", " ", given).split()
    for word in words:
        if not re.fullmatch(r"-?[0-9]{1,18}", word, re.ASCII):
            raise InputError(
                f"{word[:40]!r} is not a token id; give integers from 0 to "
                f"{coder.vocab_size - 1:,}"
            )
    numbers = np.array(words, dtype=np.int64)
    decoded = coder.decode_bytes(numbers)
    if os.isatty(1) and not decoded.endswith(b"\n"):
        decoded += b"\n"
    return Result(_tokens(numbers, split_text(coder, numbers)), decoded)


def batch(
    file: str,
    batch_size: int,
    seq_len: int,
    seed: int | None,
    step: int,
    tokenizer: Path | None,
) -> Result:
    """Show a batch as get_batch draws it: y is x shifted by one.

    The first row is shown id by id, the others as text.
    """
    from tiny_llm.batching import get_batch, load_token_array
    from tiny_llm.excerpts import show_borders, show_text, split_text

    source = load_token_array(_find_file(file))
    try:
        x, y = get_batch(source, batch_size, seq_len, seed=seed, step=step)
    except ValueError as error:
        if hasattr(error, "exit_status"):
            raise
        raise ConfigError(str(error)) from error
    decoder, _ = _find_tokenizer(Path(source.path), source.manifest, tokenizer)

    def show(token_id: int) -> str:
        return f"'{show_text(decoder.token_bytes(token_id))}'" if decoder else ""

    shape = (
        f"x and y: {tuple(x.shape)} {x.dtype}; y[b, t] is the id that follows x[b, t]"
    )
    width = max(len(show(token_id)) for token_id in x[0].tolist())
    lines = [shape, "", f"{'t':>4} {'x[0]':>7} {'':{width}} {'y[0]':>7}"]
    for t, (a, b) in enumerate(zip(x[0].tolist(), y[0].tolist(), strict=True)):
        row = f"{t:>4} {a:>7} {show(a):{width}} {b:>7} {show(b)}"
        lines.append(row.replace("↵\n", "↵").rstrip())
    for row_number in range(len(x)):
        row_ids = x[row_number].numpy()
        pieces = split_text(decoder, row_ids) if decoder else []
        text = show_borders(pieces).replace("↵\n", "↵")
        lines += ["", f"x[{row_number}]  {text or row_ids.tolist()}"]
    values: dict[str, object] = {
        "shape": list(x.shape),
        "dtype": str(x.dtype).removeprefix("torch."),
    }
    values |= {"x": x.tolist(), "y": y.tolist()}
    return Result(values, "\n".join(lines) + "\n")


def export(file: str, to: str, out: Path | None) -> Result:
    """Make a token file readable by another trainer, without copying it.

    FORMAT is datatrove, megatron, torchtitan, olmo-core or nanogpt; or llm.c or
    modded-nanogpt, which need a header and so a copy.
    """
    from tiny_llm.export import export as export_file

    done = export_file(_find_file(file), to, out)
    written = [str(path) for path in done.written]
    values = {
        "format": done.format,
        "tokens": str(done.tokens),
        "written": written,
        "usage": done.usage,
    }
    text = f"tokens: {done.tokens}\nwrote: {', '.join(written)}\nuse: {done.usage}\n"
    return Result(values, text)


def card(set: list[str] | None) -> Result:  # noqa: A002 - named as the option
    """Describe the tokens and put them into a folder, so that they can be published.

    Fills build/dataset, a folder to upload: the token files and their tokenizer,
    croissant.json (Croissant JSON-LD) and README.md. NAME is name, description,
    license, url, creator, datePublished, version or citeAs.
    """
    from tiny_llm.card import write_cards

    properties = {}
    for pair in set or []:
        name, _, value = pair.partition("=")
        if not value.strip():
            raise ConfigError(f"--set {pair!r} has no value; give NAME=VALUE")
        properties[name] = value
    written = [str(path) for path in write_cards(properties=properties)]
    text = "".join(f"wrote {path}\n" for path in written)
    if "license" not in properties:
        text += "no license is stated: give --set license=... before you publish\n"
    return Result({"written": written}, text)


COMMANDS: dict[str, Callable[..., Result]] = {
    "inspect": inspect,
    "verify": verify,
    "encode": encode,
    "decode": decode,
    "batch": batch,
    "export": export,
    "card": card,
}


def _find_file(name: str) -> Path:
    """Return the path of a token file; a split's is where the pipeline writes it."""
    return TOKENS_DIR / f"{name}.bin" if name in SPLITS else Path(name)


def _read_stdin() -> bytes:
    if sys.stdin is None:  # Python's sign that it is closed.
        raise InputError("stdin is closed; give arguments, or something to read")
    return sys.stdin.buffer.read()


def _load_tokenizer(path: Path | None) -> BPETokenizer:
    from tiny_llm.tokenize import BPETokenizer

    return BPETokenizer.load(path or TOKENIZER_PATH)


def _find_tokenizer(
    path: Path, manifest: Manifest | None, given: Path | None
) -> tuple[BPETokenizer | None, Path | None]:
    """Load the tokenizer that made the ids of a file, if it is given or near."""
    from tiny_llm.tokens import check_tokenizer

    folder = Path(os.path.abspath(path)).parent
    near = [folder / "tokenizer.json", folder.parent / "tokenizer.json"]
    found = given or next((file for file in near if file.is_file()), None)
    if found is None:
        return None, None
    tokenizer = _load_tokenizer(found)
    if manifest is not None:
        check_tokenizer(path, manifest, tokenizer.sha256)
    return tokenizer, found if given else Path(os.path.relpath(found))


def _short(manifest: Manifest) -> dict[str, Any]:
    """Return the values of a manifest, without those of each range."""
    values = dict(vars(manifest))
    values["num_ranges"] = len(values.pop("range_tokens"))
    del values["range_sha256"]
    return values


def _facts(
    ids: npt.NDArray[Any], manifest: Manifest | None, tokenizer_path: Path | None
) -> list[str]:
    near = tokenizer_path or "none in its folder or the one above; give --tokenizer"
    facts: dict[str, object] = {"ids": f"{len(ids):,} of {ids.dtype.name}"}
    if manifest is None:
        facts["manifest"] = "none, so documents and the tokenizer are unknown"
    else:
        ratio = manifest.num_bytes / max(1, manifest.num_tokens)
        facts |= {
            "documents": f"{manifest.num_documents:,}",
            "text": f"{manifest.num_bytes:,} bytes, {ratio:.2f} bytes/token",
            "vocab size": f"{manifest.vocab_size:,}",
            "separator": manifest.separator_id,
            "sha256": manifest.sha256,
        }
    facts["tokenizer"] = near
    return [f"  {name:<12}{value}" for name, value in facts.items()]


def _heading(excerpt: Excerpt) -> str:
    end = excerpt.begin + len(excerpt.ids)
    where = f"ids {excerpt.begin:,} to {end:,}"
    if excerpt.document is None:
        return where
    into = excerpt.begin - excerpt.document_begin
    inside = f", {into:,} ids into it" if into else ""
    return f"document {excerpt.document:,}{inside}, {where}"


def _tokens(ids: npt.NDArray[Any], pieces: list[bytes]) -> dict[str, object]:
    """Return ids and their text for JSON; invalid UTF-8 in a token becomes escapes."""
    if not pieces and len(ids):
        return {"ids": ids.tolist()}
    tokens = [piece.decode("utf-8", "backslashreplace") for piece in pieces]
    text = b"".join(pieces).decode("utf-8", "replace")
    return {"ids": ids.tolist(), "tokens": tokens, "text": text}
