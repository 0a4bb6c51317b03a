"""The commands of docs/tutorial.md, run one after the other as a reader would, with the tests' small profile."""

import json
import re
from pathlib import Path

import pytest

from tests.end_to_end.conftest import Checkout
from tests.params import ROOT

pytestmark = pytest.mark.slow
SMALLER = {  # what the page says, and what the test runs: the teacher of profile `test` has two layers
    "max_steps: 200": "max_steps: 12",
    "max_train_windows: 2000": "max_train_windows: 200",
    "hidden_layers: [2, 4]": "hidden_layers: [1, 2]",
    "validate_every: 50": "validate_every: 6",
}


def script(page: str) -> str:
    """All blocks marked `bash`; those of installation and browser have no mark."""
    return "\n".join(re.findall(r"^```bash\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))


def test_the_tutorial_runs_from_the_first_command_to_the_last(own_checkout: Checkout) -> None:
    commands = script((ROOT / "docs/tutorial.md").read_text(encoding="utf-8"))
    for said, small in SMALLER.items():
        assert said in commands
        commands = commands.replace(said, small)
    output = own_checkout.run("bash", "-euxo", "pipefail", "-c", commands)
    own = output.partition("+ moe-distill doctor")[2]
    assert "+ moe-distill verify" in own
    assert "FAIL" not in output
    exported = own_checkout.folder / "my/exported"
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= {p.name for p in exported.iterdir()}
    figures = json.loads((own_checkout.folder / "metrics/evaluate.json").read_text())
    assert f"student {figures['student_bits_per_byte']:.4f}" in own
    assert figures["student_steps"] == 12
    assert Path(own_checkout.folder, "reports/report.html").is_file()
    assert own_checkout.run("git", "status", "--porcelain", "--untracked-files=no") == ""
