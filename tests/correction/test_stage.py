"""The stage as DVC runs it: off, it writes a marker and changes nothing; on, its teacher is captured."""

import json
from pathlib import Path

import pytest

from moe_distill.config.params import Params
from moe_distill.shards.teacher_store import open_targets
from moe_distill.utils.files import folder_fingerprint
from stages.teacher import main as capture
from stages.teacher_correction import main
from tests.chain import Chain
from tests.correction.conftest import PARAMS


def corrected(params: Params) -> Params:
    values = params.model_dump()
    values["profile"]["models"]["teacher_correction"] = PARAMS.model_dump()
    values["profile"]["teacher"]["precision"] = "fp32"
    return Params.model_validate(values)


def test_off_it_writes_a_marker_and_the_shards_are_as_they_were(stage_workspace: Chain) -> None:
    before = [folder_fingerprint(stage_workspace.targets), folder_fingerprint(stage_workspace.head)]
    main(stage_workspace.params)
    [marker] = Path("models/teacher_corrected").iterdir()
    assert json.loads(marker.read_text()) == {"corrected": False}
    assert json.loads(Path("metrics/teacher_correction.json").read_text()) == {"corrected": 0.0}
    capture(stage_workspace.params)
    assert [folder_fingerprint(stage_workspace.targets), folder_fingerprint(stage_workspace.head)] == before


def test_on_its_teacher_is_captured(stage_workspace: Chain) -> None:
    params, uncorrected = corrected(stage_workspace.params), folder_fingerprint(stage_workspace.targets)
    main(params)
    metrics = json.loads(Path("metrics/teacher_correction.json").read_text())
    assert metrics["bits_per_byte_after"] < metrics["bits_per_byte_before"]
    capture(params)
    assert folder_fingerprint(stage_workspace.targets) != uncorrected
    metadata = open_targets(stage_workspace.targets / "train").index.metadata
    assert metadata["teacher_fingerprint"] == folder_fingerprint(Path("models/teacher_corrected"))
    main(stage_workspace.params)  # off again
    capture(stage_workspace.params)
    assert folder_fingerprint(stage_workspace.targets) == uncorrected


def test_what_was_finished_is_taken(stage_workspace: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    main(corrected(stage_workspace.params))
    published = folder_fingerprint(Path("models/teacher_corrected"))
    main(stage_workspace.params)
    capsys.readouterr()
    main(corrected(stage_workspace.params))
    assert "its result is taken" in capsys.readouterr().out
    assert folder_fingerprint(Path("models/teacher_corrected")) == published
