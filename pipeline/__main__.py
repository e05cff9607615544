"""Run one stage: `python -m pipeline STAGE [ARGUMENTS]`.

A fault that the user can fix ends in one line on stderr and an exit status; see
tiny_llm/exit_status.py.
"""

from __future__ import annotations

import os
import sys

try:
    from tiny_llm.exit_status import end_on_signals, fail, run
except KeyboardInterrupt:  # Any earlier, Python itself handles it.
    os._exit(130)

_PROGRAM = "python -m pipeline"


def main() -> int:
    """Run the stage that the command line names; return the exit status."""
    program = " ".join([_PROGRAM, *sys.argv[1:2]])
    end_on_signals(program)
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        return _show_help(0 if arguments else 2)
    return _run_stage(program, *arguments)


def _run_stage(program: str, name: str, *arguments: str) -> int:
    import argparse
    import importlib
    from pathlib import Path

    from tiny_llm.layout import PARAMS_PATH

    no_stage = f"there is no stage {name!r}; `{_PROGRAM} --help` lists them"
    if not (name.isidentifier() and Path(__file__).with_name(f"{name}.py").is_file()):
        return fail(program, no_stage, 2)
    try:
        stage = importlib.import_module(f"pipeline.{name}")
    except ImportError as error:
        if (error.name or "").partition(".")[0] in ("pipeline", "tiny_llm"):
            raise  # A mistake in this repository, not in the environment.
        return fail(
            program,
            f"{sys.executable} lacks the packages that a stage needs ({error}); "
            "run `make repro`, or `. .venv/bin/activate` if you have run it before",
            2,
        )
    if not hasattr(stage, "run"):
        return fail(program, no_stage, 2)
    parser = argparse.ArgumentParser(f"{_PROGRAM} {name}", description=stage.__doc__)
    if hasattr(stage, "add_arguments"):
        stage.add_arguments(parser)
    options = vars(parser.parse_args(arguments))
    if not PARAMS_PATH.is_file():
        return fail(
            program,
            f"no {PARAMS_PATH} in {Path.cwd()}; run it in the repository's root",
            2,
        )
    return run(
        program,
        lambda: stage.run(**options),
        lambda closing_line: sys.stderr.write(f"{closing_line}\n"),
    )


def _show_help(status: int) -> int:
    text = sys.modules["pipeline"].__doc__ or ""
    (sys.stderr if status else sys.stdout).write(text)
    return status


if __name__ == "__main__":
    sys.exit(main())
