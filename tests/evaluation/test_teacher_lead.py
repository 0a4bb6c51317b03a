"""Whether the teacher is ahead of the student that it is to teach, told and judged before a training."""

import json
from pathlib import Path

import pytest
import torch

from moe_distill.commands import doctor
from moe_distill.errors import DataError
from moe_distill.evaluation.evaluate import EvaluationInputs, evaluate
from moe_distill.evaluation.teacher_lead import measure_lead, require_lead, told
from tests.chain import Chain
from tests.params import fixed_params

BEHIND = {"teacher_bits_per_byte": 1.045, "student_init_bits_per_byte": 1.028, "lead_bits_per_byte": -0.017}
AHEAD = {"teacher_bits_per_byte": 1.788, "student_init_bits_per_byte": 3.69, "lead_bits_per_byte": 1.902}


def test_both_figures_are_those_of_the_evaluation(chain: Chain) -> None:
    student = chain.folder / "models/student_init"
    lead = measure_lead(chain.folder / "data/windows", chain.targets, student, 8, torch.device("cpu"))
    inputs = EvaluationInputs(chain.folder / "data/windows", chain.targets, student, student, student, student)
    figures = evaluate(inputs, chain.params.profile.evaluate, torch.device("cpu")).metrics
    assert lead["teacher_bits_per_byte"] == pytest.approx(figures["teacher_bits_per_byte"])
    assert lead["student_init_bits_per_byte"] == pytest.approx(figures["student_init_bits_per_byte"])
    assert lead["lead_bits_per_byte"] == pytest.approx(
        lead["student_init_bits_per_byte"] - lead["teacher_bits_per_byte"]
    )


def test_a_teacher_that_is_behind_is_refused_in_one_line_that_says_what_helps() -> None:
    with pytest.raises(DataError) as caught:
        require_lead(BEHIND)
    said = str(caught.value)
    assert "\n" not in said
    for part in ("1.045", "1.028", "windows.teacher_max_length", "corpus.sources", "models.teacher_correction"):
        assert part in said
    assert "teacher_must_lead: false" in said
    with pytest.raises(DataError):
        require_lead(BEHIND | {"lead_bits_per_byte": 0.0})
    require_lead(AHEAD)
    require_lead(AHEAD | {"lead_bits_per_byte": 1e-6})


@pytest.mark.parametrize(
    ("lead", "must_lead", "ok"), [(AHEAD, True, True), (BEHIND, True, False), (BEHIND, False, True)]
)
def test_r25_doctor_tells_both(
    lead: dict[str, float], must_lead: bool, ok: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    params = fixed_params()
    experiment = params.experiment.model_copy(update={"teacher_must_lead": must_lead})
    params = params.model_copy(update={"experiment": experiment})
    assert not [each for each in doctor.examine(params) if each.subject == "lead"]
    Path("metrics").mkdir()
    Path("metrics/teacher_lead.json").write_text(json.dumps(lead))
    [found] = [each for each in doctor.examine(params) if each.subject == "lead"]
    assert found.text == told(lead)
    assert found.ok is ok
