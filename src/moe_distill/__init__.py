"""Distil a Mixture-of-Experts language model into a small student that has another tokenizer."""

import os

# PyTorch's threads on a CPU spin for milliseconds while they wait for each other, on a core that another program may
# need to let them go on: beside one, steps took twenty times as long. Read when torch is imported, hence here.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
