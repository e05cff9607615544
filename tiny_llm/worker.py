"""A worker process: calls one function on jobs that `parallel` sends it.

Run as `python -m tiny_llm.worker MODULE:FUNCTION`. Each line on stdin is a job, a JSON
object of keyword arguments; each line on stdout is its result or error. The worker
ends when stdin does, so it does not outlive a parent that is killed.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from typing import Any

from tiny_llm.errors import ConfigError, InputError, IntegrityError, ResourceError

ERRORS = {
    error.__name__: error
    for error in (ConfigError, InputError, IntegrityError, ResourceError)
}


def main() -> None:
    """Import the function, then answer jobs until stdin ends."""
    # Nothing but answers may reach stdout: native libraries print there.
    with os.fdopen(os.dup(1), "w") as answers, open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        module, _, name = sys.argv[1].partition(":")
        function = getattr(importlib.import_module(module), name)
        for line in sys.stdin:
            answers.write(json.dumps(_answer(function, json.loads(line))) + "\n")
            answers.flush()


def _answer(function: Any, job: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"result": function(**job)}
    except tuple(ERRORS.values()) as error:
        return {"error": type(error).__name__, "message": str(error)}
    except MemoryError:
        message = "out of memory; free some and run again"
    except OSError as error:
        message = str(error)
    except Exception:
        return {"error": "", "message": traceback.format_exc()}
    return {"error": ResourceError.__name__, "message": message}


if __name__ == "__main__":
    main()
