"""What one of several processes sees: run by torchrun in test_processes.py, which reads the file of each rank."""

import json
import sys
from pathlib import Path

import torch
from torch import nn

from moe_distill.utils import processes as module
from moe_distill.utils.processes import joined_processes, sum_gradients


def main(folder: Path) -> None:
    module.BUCKET_ELEMENTS = 5  # so that the gradients below travel in several buckets
    with joined_processes() as processes:
        rank = processes.rank
        parameters = [nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(7))]
        parameters[0].grad = torch.full((2, 3), float(rank + 1))
        if rank == 1:
            parameters[1].grad = torch.arange(4.0)
        sum_gradients(parameters, processes)
        seen = {
            "rank": rank,
            "count": processes.count,
            "totals": processes.totals([rank, 2**40 + rank]),
            "anywhere": processes.anywhere([rank == 2, False, True]),
            "rows": processes.rows(torch.full((2 * rank, 1), rank)).tolist(),
            "no_rows": processes.rows(torch.zeros(0, 3)).shape,
            "text": processes.text(f"of rank {rank}, é"),
            "gradients": [None if each.grad is None else each.grad.tolist() for each in parameters],
        }
        processes.wait()
    (folder / f"{rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
