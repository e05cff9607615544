"""Run one stage: `python -m pipeline STAGE [ARGUMENTS]`.

A fault that the user can fix ends in one line on stderr and an exit status:
2 configuration, 3 bad input, 4 integrity or download, 5 resources, 6 cluster,
130 Ctrl-C, 143 SIGTERM. Until signal handlers are installed, only light modules are
imported.
"""

from __future__ import annotations

import os
import sys

try:
    import signal
    from collections.abc import Callable
    from types import ModuleType
except KeyboardInterrupt:  # Any earlier, Python itself handles it.
    os._exit(130)

_PROGRAM = "python -m pipeline"
_SIGNALS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


def main() -> int:
    """Run the stage that the command line names; return the exit status."""
    _handle_signals(_end_at_once)
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        return _show_help(0 if arguments else 2)
    return _run_stage(*arguments)


def _run_stage(name: str, *arguments: str) -> int:
    import argparse
    import importlib
    from pathlib import Path

    from tiny_llm.layout import PARAMS_PATH

    no_stage = f"there is no stage {name!r}; `{_PROGRAM} --help` lists them"
    if not (name.isidentifier() and Path(__file__).with_name(f"{name}.py").is_file()):
        return _fail(no_stage, 2)
    try:
        stage = importlib.import_module(f"pipeline.{name}")
    except ImportError as error:
        if (error.name or "").partition(".")[0] in ("pipeline", "tiny_llm"):
            raise  # A mistake in this repository, not in the environment.
        return _fail(
            f"{sys.executable} lacks the packages that a stage needs ({error}); "
            "run `make repro`, or `. .venv/bin/activate` if you have run it before",
            2,
        )
    if not hasattr(stage, "run"):
        return _fail(no_stage, 2)
    parser = argparse.ArgumentParser(f"{_PROGRAM} {name}", description=stage.__doc__)
    if hasattr(stage, "add_arguments"):
        stage.add_arguments(parser)
    options = vars(parser.parse_args(arguments))
    if not PARAMS_PATH.is_file():
        return _fail(
            f"no {PARAMS_PATH} in {Path.cwd()}; run it in the repository's root", 2
        )
    return _work(stage, options)


def _work(stage: ModuleType, options: dict[str, str]) -> int:
    import errno

    from tiny_llm.errors import (
        ClusterError,
        ConfigError,
        InputError,
        IntegrityError,
        ResourceError,
    )

    ours = ConfigError, InputError, IntegrityError, ResourceError, ClusterError

    try:
        _handle_signals(_raise_interrupt)
        try:
            closing_line = stage.run(**options)
        finally:  # Nothing is left to clean up: from here a signal ends the process.
            _handle_signals(signal.SIG_DFL)
    except ours as error:
        return _fail(str(error), error.exit_status)
    except MemoryError:
        return _fail("out of memory; free some and run again", 5)
    except OSError as error:
        is_locked = isinstance(error, PermissionError) or error.errno == errno.EROFS
        remedy = (
            "; change its permissions, or work in a copy of your own"
            if is_locked
            else ""
        )
        return _fail(f"{error}{remedy}", 5)
    except KeyboardInterrupt as error:
        number = next(iter(error.args), signal.SIGINT)
        return _fail(_explain_signal(number), 128 + number)
    sys.stderr.write(f"{closing_line}\n")
    return 0


def _show_help(status: int) -> int:
    text = sys.modules["pipeline"].__doc__ or ""
    (sys.stderr if status else sys.stdout).write(text)
    return status


def _fail(message: str, status: int) -> int:
    program = " ".join([_PROGRAM, *sys.argv[1:2]])
    line = f"{program}: error: {' '.join(message.split())}\n"
    # Not through sys.stderr: a handler may interrupt another write to it.
    os.write(2, line.encode(errors="backslashreplace"))
    return status


def _explain_signal(number: int) -> str:
    return f"{_SIGNALS[signal.Signals(number)]}; nothing half-written was left behind"


def _handle_signals(handler: Callable[[int, object], None] | signal.Handlers) -> None:
    for number in _SIGNALS:
        signal.signal(number, handler)


def _end_at_once(number: int, _: object) -> None:
    """Exit without cleaning up: the stage has not begun its own work.

    An exception would surface inside some import, which might catch it or end in a
    traceback.
    """
    os._exit(_fail(_explain_signal(number), 128 + number))


def _raise_interrupt(number: int, _: object) -> None:
    """Stop the work: ignore further signals while `finally` blocks clean up."""
    _handle_signals(signal.SIG_IGN)
    raise KeyboardInterrupt(number)


if __name__ == "__main__":
    sys.exit(main())
