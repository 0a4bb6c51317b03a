"""How far long work has got: a bar on a terminal, lines in a pipe."""

import os
import pty
import subprocess
import sys
import termios
from itertools import count

import pytest

from moe_distill.log import progress, progress_bar
from moe_distill.pipeline.stage_runner import RESUMED, _way_on

WORK = """
from moe_distill.log import log, progress
with progress(3, "train_kd") as advance:
    for step in range(3):
        log(f"line {step}")
        advance(tokens=1000)
"""


def on_a_terminal(code: str) -> str:
    """What a process writes to a terminal, which both its stdout and stderr are."""
    parent, child = pty.openpty()
    termios.tcsetwinsize(child, (24, 100))
    with subprocess.Popen([sys.executable, "-c", code], stdout=child, stderr=child) as process:
        os.close(child)
        written = b""
        try:
            while part := os.read(parent, 4096):
                written += part
        except OSError:  # the other end is closed
            pass
        assert process.wait() == 0
    os.close(parent)
    return written.decode()


def test_a_terminal_has_one_bar_and_whole_lines_above_it() -> None:
    written = on_a_terminal(WORK)
    lines = [line.split("\r")[-1] for line in written.replace("\r\n", "\n").split("\n")]
    assert [line for line in lines if line.startswith("line")] == ["line 0", "line 1", "line 2"]
    assert "train_kd:   0%" in written
    assert "tokens/s" in written


def test_a_pipe_has_lines_alone() -> None:
    done = subprocess.run([sys.executable, "-c", WORK], capture_output=True, text=True, check=True)
    assert done.stdout == "line 0\nline 1\nline 2\n"
    assert done.stderr == ""


def test_a_pipe_has_a_line_a_minute_with_what_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    seconds = count(step=10)  # a call each 10 seconds
    with progress(100, "teacher: train", "batches", clock=lambda: float(next(seconds))) as advance:
        for _ in range(20):
            advance(tokens=500)
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "teacher: train: 6 of 100 batches, 6%, 50 tokens/s, 0:15:40 left",
        "teacher: train: 12 of 100 batches, 12%, 50 tokens/s, 0:14:40 left",
        "teacher: train: 18 of 100 batches, 18%, 50 tokens/s, 0:13:40 left",
    ]


def test_resumed_work_counts_what_was_done_before_it(capsys: pytest.CaptureFixture[str]) -> None:
    seconds = count(step=60)
    with progress(100, "train_kd", done=90, clock=lambda: float(next(seconds))) as advance:
        advance()
    assert capsys.readouterr().out == "train_kd: 91 of 100 steps, 91%, 0:09:00 left\n"


def test_a_bar_gives_back_what_it_is_given() -> None:
    assert list(progress_bar("abc", 3, "tokenize")) == ["a", "b", "c"]


def test_only_stages_that_keep_their_work_say_that_they_continue() -> None:
    assert all("continues" in _way_on(stage) for stage in RESUMED)
    assert "begins this stage anew" in _way_on("models@teacher")
