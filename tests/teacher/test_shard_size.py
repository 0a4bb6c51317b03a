"""What the real pair's shards take on disk, from the fields alone."""

from pathlib import Path

import yaml

from moe_distill.config import MINIMUM_ROUTER_POSITIONS, Profile
from moe_distill.shards.format import row_bytes
from moe_distill.shards.targets import target_fields

ROOT = Path(__file__).parents[2]
TEACHER_SIZE, EXPERTS = 1024, 3  # Huihui-MoE-1B


def test_shards_of_the_real_pair_stay_within_15_gb() -> None:
    profile = Profile.model_validate(yaml.safe_load((ROOT / "profiles/p100.yaml").read_text()))
    capture, windows = profile.teacher, profile.windows
    fields = target_fields(capture.k, capture.tail_samples, len(capture.hidden_layers), TEACHER_SIZE, 1, EXPERTS)
    each = row_bytes(fields)
    assert windows.max_train_windows is not None
    assert windows.max_validation_windows is not None
    n_windows = windows.max_train_windows + windows.max_validation_windows
    assert n_windows == 50_000
    positions = n_windows * (windows.teacher_max_length - 1)
    total = positions * each["positions"]
    total += n_windows * capture.hidden_fraction * capture.hidden_run * each["hidden"]
    assert 10e9 < total < 15e9
    # and a step of the router sees enough positions
    assert profile.train.batch_windows * capture.hidden_fraction * capture.hidden_run >= MINIMUM_ROUTER_POSITIONS
