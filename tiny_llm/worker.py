"""A worker process: calls one function on jobs that `parallel` sends it.

Its first argument is MODULE:FUNCTION. Each line on stdin is a job, a JSON object of
keyword arguments; each line on stdout is its result or error. The worker ends when
stdin does, so it does not outlive a parent that is killed.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from typing import Any, NamedTuple

from tiny_llm.errors import ConfigError, InputError, IntegrityError, ResourceError

ERRORS = {
    error.__name__: error
    for error in (ConfigError, InputError, IntegrityError, ResourceError)
}


class Job(NamedTuple):
    """One call.

    Attributes:
        name: What error messages call it, such as "bytes 0 to 8,388,608 of train.txt".
        arguments: Keyword arguments, which JSON can hold.
        remedy: What to do, besides freeing memory, when the worker is killed.
    """

    name: str
    arguments: dict[str, Any]
    remedy: str = "set TINY_LLM_WORKERS lower"


def main() -> None:
    """Import the function, then answer jobs until stdin ends."""
    # Nothing but answers may reach stdout: native libraries print there.
    with os.fdopen(os.dup(1), "w") as answers, open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        module, _, name = sys.argv[1].partition(":")
        function = getattr(importlib.import_module(module), name)
        for line in sys.stdin:
            answers.write(json.dumps(answer(function, json.loads(line))) + "\n")
            answers.flush()


def answer(function: Any, job: dict[str, Any]) -> dict[str, Any]:
    """Call a function; return its result, or what it raised, as JSON can hold it."""
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


def result_of(answer: dict[str, Any]) -> Any:
    """Return the result in an answer, or raise the error in it.

    Raises:
        Exception: One of tiny_llm.errors; a RuntimeError with its traceback if the
            function raised anything else.
    """
    if "error" not in answer:
        return answer["result"]
    if kind := ERRORS.get(answer["error"]):
        raise kind(answer["message"])
    raise RuntimeError(f"a worker failed:\n{answer['message']}")
