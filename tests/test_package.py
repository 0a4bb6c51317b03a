"""What importing the package does."""

import os
import subprocess
import sys

import pytest

SAID = "import moe_distill, os; print(os.environ.get('GOMP_SPINCOUNT'))"


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_waiting_threads_soon_give_up_their_core_unless_the_user_has_said_how_they_wait(
    chosen: dict[str, str], expected: str
) -> None:
    kept = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", SAID], env=kept | chosen, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected
