"""The ULD loss of trl, timed in an environment of its own; benchmarks/row_uld.py starts it.

    python benchmarks/uld_child.py INPUTS.safetensors

Each line of standard input asks for one forward and backward pass; its CPU seconds are the line that answers.
"""

import sys
import time
from dataclasses import fields
from types import SimpleNamespace

from safetensors.torch import load_file
from trl.experimental.gold import GOLDConfig
from trl.experimental.gold.gold_trainer import ULDLoss


def main(path: str) -> None:
    """The loss as GOLDConfig has it by default."""
    loss = ULDLoss(SimpleNamespace(**{each.name: each.default for each in fields(GOLDConfig)}))
    inputs = load_file(path)
    student_logits = inputs.pop("student_logits").requires_grad_()
    print("ready", flush=True)
    for _line in sys.stdin:
        began = time.process_time()
        loss(student_logits=student_logits, **inputs).backward()
        print(time.process_time() - began, flush=True)
        student_logits.grad = None


if __name__ == "__main__":
    main(sys.argv[1])
