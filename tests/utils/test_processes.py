"""What processes tell each other: three of them, by torchrun on the CPU; and one alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from moe_distill.errors import DataError
from moe_distill.utils.processes import ALONE, joined_processes, sum_gradients
from tests.params import ROOT

COUNT = 3


def test_three_processes_agree(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(COUNT)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "GLOO_SOCKET_IFNAME": "lo"}
    subprocess.run(
        [*command, "-m", "tests.utils.ranks", str(tmp_path)], cwd=ROOT, env=environment, check=True, capture_output=True
    )
    for rank in range(COUNT):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == {
            "rank": rank,
            "count": COUNT,
            "totals": [3, 3 * 2**40 + 3],
            "anywhere": [True, False, True],
            "rows": [[1], [1], [2], [2], [2], [2]],
            "no_rows": [0, 3],
            "text": "of rank 0, é",
            "gradients": [[[6.0] * 3] * 2, [0.0, 1.0, 2.0, 3.0], None],
        }


def test_after_an_error_nobody_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """With NCCL a process could wait for others that wait for it, before it has said what is wrong."""
    parted = list[bool]()
    monkeypatch.setattr("torch.distributed.init_process_group", lambda *_, **__: None)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 0)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.destroy_process_group", lambda: parted.append(True))
    with pytest.raises(DataError), joined_processes():
        raise DataError("what")
    assert not parted
    with joined_processes():
        pass
    assert parted


def test_one_process_alone_sees_itself() -> None:
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))]
    parameters[0].grad = torch.ones(2)
    sum_gradients(parameters, ALONE)
    assert parameters[0].grad.tolist() == [1.0, 1.0]
    assert parameters[1].grad is None
    assert ALONE.totals([1, 2]) == [1, 2]
    assert ALONE.anywhere([True, False]) == [True, False]
    assert ALONE.rows(torch.ones(2)).tolist() == [1.0, 1.0]
    assert ALONE.text("own") == "own"
    ALONE.wait()
