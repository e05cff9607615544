"""Commands: a failure or a signal becomes one line on stderr and an exit status.

2 configuration, 3 bad input, 4 integrity or download, 5 resources, 6 cluster,
130 Ctrl-C, 143 SIGTERM. Until signal handlers are installed, only light modules are
imported.
"""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable

_SIGNALS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


def end_on_signals(program: str) -> None:
    """Let signals end this process at once: it has nothing to clean up yet.

    An exception would surface inside some import, which might catch it or end in a
    traceback.
    """
    _handle_signals(functools.partial(_end_at_once, program))


def run(program: str, work: Callable[[], object], show: Callable[..., object]) -> int:
    """Do the work of a command, and return the exit status.

    Args:
        program: The name that an error line begins with.
        work: Raises one of the errors in `errors` if a user can fix the cause.
        show: Gets what `work` returned, and writes it to the user. A signal ends it.
    """
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
            result = work()
        finally:  # Nothing is left to clean up: from here a signal ends the process.
            _handle_signals(signal.SIG_DFL)
        show(result)
    except ours as error:
        return fail(program, str(error), error.exit_status)
    except MemoryError:
        return fail(program, "out of memory; free some and run again", 5)
    except OSError as error:
        is_locked = isinstance(error, PermissionError) or error.errno == errno.EROFS
        remedy = (
            "; change its permissions, or work in a copy of your own"
            if is_locked
            else ""
        )
        return fail(program, f"{error}{remedy}", 5)
    except KeyboardInterrupt as error:
        number = next(iter(error.args), signal.SIGINT)
        return fail(program, _explain_signal(number), 128 + number)
    return 0


def fail(program: str, message: str, status: int) -> int:
    """Write an error line to stderr; return the status."""
    line = f"{program}: error: {' '.join(message.split())}\n"
    # Not through sys.stderr: a handler may interrupt another write to it.
    os.write(2, line.encode(errors="backslashreplace"))
    return status


def _explain_signal(number: int) -> str:
    return f"{_SIGNALS[signal.Signals(number)]}; nothing half-written was left behind"


def _handle_signals(handler: Callable[[int, object], None] | signal.Handlers) -> None:
    for number in _SIGNALS:
        signal.signal(number, handler)


def _end_at_once(program: str, number: int, _: object) -> None:
    os._exit(fail(program, _explain_signal(number), 128 + number))


def _raise_interrupt(number: int, _: object) -> None:
    """Stop the work: ignore further signals while `finally` blocks clean up."""
    _handle_signals(signal.SIG_IGN)
    raise KeyboardInterrupt(number)
