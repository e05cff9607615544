"""Ctrl-C and SIGTERM at any moment: one line, a status, nothing half-written."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import built, needs_proc, run_up_to

STOPS = {
    signal.SIGINT: (130, "interrupted; nothing half-written was left behind"),
    signal.SIGTERM: (143, "terminated; nothing half-written was left behind"),
}


def start(workspace, *stage) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", *stage],
        cwd=workspace.path,
        env=workspace.env,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(condition, process):
    deadline = time.monotonic() + 20
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.001)


def handles_signals(process) -> bool:
    """Whether pipeline/__main__.py is in control; Python does not handle SIGTERM."""
    with open(f"/proc/{process.pid}/status") as file:
        [caught] = [line.split()[1] for line in file if line.startswith("SigCgt")]
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


@needs_proc
@pytest.mark.parametrize("number", STOPS)
@pytest.mark.parametrize("stage", ["fetch", "bpe"])
def test_a_stop_while_modules_are_imported_ends_in_one_line(workspace, stage, number):
    if stage == "bpe":
        run_up_to(workspace, "fetch")
    status, message = STOPS[number]
    stopped = 0
    for tick in range(8):
        process = start(workspace, stage)
        wait_until(lambda process=process: handles_signals(process), process)
        time.sleep(tick * 0.06)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        if process.returncode == status:
            assert errors == f"python -m pipeline {stage}: error: {message}\n"
            stopped += 1
        else:  # The work was done; the signal may have ended Python's own exit.
            assert process.returncode in (0, -number), errors
            assert errors == "" or errors.startswith("wrote ")
            assert errors.count("\n") <= 1
    assert stopped >= 2


def is_running(process_id):
    """Whether a process exists and is not a zombie."""
    try:
        status = Path(f"/proc/{process_id}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


@needs_proc
@pytest.mark.parametrize("number", STOPS)
def test_a_stop_during_the_work_ends_all_workers(workspace, number, text):
    (workspace.source / "train.txt").write_bytes(text * 100_000)
    run_up_to(workspace, "bpe")
    workspace.env["TINY_LLM_WORKERS"] = "3"
    process = start(workspace, "encode", "train")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    wait_until(
        lambda: any(name.endswith(".part") for name in built(workspace)), process
    )
    workers = children.read_text().split()
    assert len(workers) == 3
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == STOPS[number][0]
    assert not any(map(is_running, workers))


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
@pytest.mark.parametrize("number", STOPS)
def test_a_stop_during_the_work_removes_temporary_files(workspace, number, text):
    (workspace.source / "train.txt").write_bytes(text * 100_000)
    run_up_to(workspace, "bpe")
    before = built(workspace)
    process = start(workspace, "encode", "train")
    wait_until(lambda: len(built(workspace)) > len(before), process)
    process.send_signal(number)
    process.send_signal(number)  # A second one does not disturb the cleanup.
    _, errors = process.communicate(timeout=60)
    status, message = STOPS[number]
    assert process.returncode == status
    assert errors == f"python -m pipeline encode: error: {message}\n"
    assert built(workspace) == before
