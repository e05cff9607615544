"""The command `tiny-llm`: look at, verify, export and describe tokens.

Where a FILE is asked for, train and valid mean the token files that the pipeline has
made in this folder. What a command finds goes to stdout, as JSON with --json; an error
is one line on stderr. Only `batch` imports torch.
"""

from __future__ import annotations

import os
import sys

try:
    import argparse
    import signal
    from pathlib import Path

    from tiny_llm.commands import COMMANDS, Result
    from tiny_llm.exit_status import end_on_signals, fail, run
except KeyboardInterrupt:  # Any earlier, Python itself handles it.
    os._exit(130)


def main(arguments: list[str] | None = None) -> int:
    """Run the command that the command line names; return the exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    program = " ".join(["tiny-llm", *(word for word in given[:1] if word in COMMANDS)])
    end_on_signals(program)
    # A reader may close the pipe, as `head` does: then end without a word, as `cat`
    # does. Not while workers run: a worker's broken pipe is an error to report.
    _handle_closed_pipe(end=True)
    options = vars(make_parser().parse_args(given))
    command, as_json = COMMANDS[options.pop("command")], options.pop("json")
    _handle_closed_pipe(end=False)
    return run(
        program,
        lambda: command(**options),
        lambda result: _show(program, result, as_json),
    )


def make_parser() -> argparse.ArgumentParser:
    """Return the parser, with one subparser for each of `COMMANDS`."""
    parser = argparse.ArgumentParser("tiny-llm", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str) -> argparse.ArgumentParser:
        lines = [line.strip() for line in (COMMANDS[name].__doc__ or "").splitlines()]
        added = commands.add_parser(
            name,
            help=lines[0].rstrip("."),
            description="\n".join(lines),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.add_argument("--json", action="store_true", help="write JSON")
        return added

    def add_tokenizer(command: argparse.ArgumentParser, default: str) -> None:
        text = f"a tokenizer.json (default: {default})"
        command.add_argument("--tokenizer", metavar="PATH", type=Path, help=text)

    nearby = "the one in the folder of FILE, or in the folder above"
    inspect = add("inspect")
    inspect.add_argument("file", metavar="FILE", help="a token file, train or valid")
    which = inspect.add_mutually_exclusive_group()
    which.add_argument(
        "--at", type=int, metavar="POSITION", help="read from this id on"
    )
    which.add_argument("--random", type=int, metavar="SEED", help="documents at random")
    inspect.add_argument(
        "--documents", type=int, default=3, metavar="N", help="how many (3)"
    )
    add_tokenizer(inspect, nearby)

    verify = add("verify")
    verify.add_argument(
        "files", metavar="FILE", nargs="*", help="(default: train and valid)"
    )
    add_tokenizer(verify, nearby)

    encode = add("encode")
    encode.add_argument("text", metavar="TEXT", nargs="*", help="(default: stdin)")
    decode = add("decode")
    decode.add_argument("ids", metavar="ID", nargs="*", help="(default: stdin)")
    for command in (encode, decode):
        add_tokenizer(command, "build/tokenizer.json")

    batch = add("batch")
    batch.add_argument("file", metavar="FILE", nargs="?", default="train")
    batch.add_argument("--batch-size", type=int, default=4, metavar="B", help="(4)")
    batch.add_argument("--seq-len", type=int, default=16, metavar="T", help="(16)")
    batch.add_argument("--seed", type=int, help="makes the batch reproducible")
    batch.add_argument("--step", type=int, default=0, help="needs --seed (0)")
    add_tokenizer(batch, nearby)

    export = add("export")
    export.add_argument("file", metavar="FILE", help="a token file, train or valid")
    export.add_argument("--to", required=True, metavar="FORMAT")
    text = "write there, beside a link to FILE (default: the folder of FILE)"
    export.add_argument("--out", metavar="FOLDER", type=Path, help=text)

    card = add("card")
    text = "state a property of the dataset, such as license=MIT"
    card.add_argument("--set", action="append", metavar="NAME=VALUE", help=text)
    return parser


def _show(program: str, result: Result, as_json: bool) -> None:
    """Write a result to stdout; raise the gravest of its errors."""
    import errno
    import json

    if sys.stdout is None:  # Python's sign that it is closed.
        raise OSError(errno.EBADF, "stdout is closed; send it to a file or a pipe")
    text = result.text
    if as_json:
        text = json.dumps(result.values, indent=2) + "\n"
    if isinstance(text, str):
        encoding = sys.stdout.encoding or "utf-8"
        text = text.encode(encoding, "backslashreplace")
    _handle_closed_pipe(end=True)
    sys.stdout.buffer.write(text)
    sys.stdout.flush()
    errors = sorted(result.errors, key=lambda error: error.exit_status)
    for error in errors[:-1]:
        fail(program, str(error), error.exit_status)
    if errors:
        raise errors[-1]


def _handle_closed_pipe(end: bool) -> None:
    if hasattr(signal, "SIGPIPE"):  # Not on Windows.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL if end else signal.SIG_IGN)


if __name__ == "__main__":
    sys.exit(main())
