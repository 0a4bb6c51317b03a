"""The machine in words, and how many of its cores there are to use."""

import os

import pytest

from moe_distill.utils.machine import describe_machine, usable_cores


def test_cores_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _process: {0, 5, 7}, raising=False)
    assert usable_cores() == 3
    assert ", 3 cores, " in describe_machine()


def test_a_system_that_binds_no_process_has_all_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    assert ", 6 cores, " in describe_machine()
