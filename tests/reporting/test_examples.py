"""Both models at a few positions and after a few beginnings, against the shards and the plain forward pass."""

import json
from pathlib import Path

import pytest
import torch

from moe_distill.alignment.token_bytes import token_bytes
from moe_distill.config.model_keys import FolderModel
from moe_distill.config.profile import Evaluate
from moe_distill.models.pretrained import load_causal_lm
from moe_distill.models.tokenizer_files import load_tokenizer
from moe_distill.reporting.continuations import continued
from moe_distill.reporting.model_facts import licence_facts, read_model_facts
from moe_distill.reporting.pieces import visible
from moe_distill.reporting.student_examples import Student, load_student, student_positions, student_samples
from moe_distill.reporting.teacher_examples import (
    PROMPT_TOKENS,
    Teacher,
    TeacherExamples,
    TeacherPosition,
    teacher_positions,
    teacher_samples,
)
from moe_distill.shards.window_store import STUDENT_WINDOWS, TEACHER_WINDOWS, WindowStore
from tests.chain import Chain

Spelled = tuple[bytes | None, ...]


def spelled_by(folder: Path) -> Spelled:
    return token_bytes(load_tokenizer(folder), folder.name).table


@pytest.fixture(scope="module")
def student(chain: Chain) -> Student:
    folder = chain.folder / "models/student_init"
    return load_student(folder, spelled_by(folder), chain.params.profile.windows.student_max_length)


@pytest.fixture(scope="module")
def positions(chain: Chain) -> list[TeacherPosition]:
    return teacher_positions(chain.folder / "data/windows", chain.targets, spelled_by(chain.folder / "models/teacher"))


def test_teacher_positions_are_what_the_teacher_itself_says(chain: Chain, positions: list[TeacherPosition]) -> None:
    folder = chain.folder / "models/teacher"
    spelled, model = spelled_by(folder), load_causal_lm(folder, torch.float32, torch.device("cpu"))
    teacher = WindowStore(chain.folder / "data/windows/teacher/validation", TEACHER_WINDOWS)
    student = WindowStore(chain.folder / "data/windows/student/validation", STUDENT_WINDOWS)
    assert len(positions) >= 3
    for each in positions:
        row = int(student.tokens("teacher_rows", each.window)[each.position])
        window = next(n for n in range(len(teacher)) if teacher.span(n).start <= row < teacher.span(n).stop)
        read = teacher.reader.slice("token_ids", teacher.span(window).start, row).tolist()
        probabilities = model(torch.tensor([[teacher.prefix_id, *read]])).logits[0, -1].softmax(-1).detach()
        likely = probabilities.topk(len(each.top))
        assert [guess.piece for guess in each.top] == [visible(spelled[number]) for number in likely.indices.tolist()]
        assert [guess.probability for guess in each.top] == pytest.approx(likely.values.tolist(), rel=2e-3)
        assert len({guess.piece for guess in each.top}) == 5


def test_both_read_the_same_bytes_before_the_same_byte(
    chain: Chain, student: Student, positions: list[TeacherPosition]
) -> None:
    found = student_positions(chain.folder / "data/windows", chain.targets, student, positions)
    store = WindowStore(chain.folder / "data/windows/student/validation", STUDENT_WINDOWS)
    for teacher, both in zip(positions, found, strict=True):
        for of_teacher, of_student, _ in both.segments:
            assert "".join(of_teacher) == "".join(of_student) != ""
        assert sum(not each.is_read for each in both.segments) == 1
        assert both.segments[-1].student[0] == both.text
        ids = store.tokens("token_ids", teacher.window).tolist()
        assert both.text == visible(student.spelled[ids[teacher.position]])
        inputs = torch.tensor([[store.prefix_id, *ids[: teacher.position]]])
        likely = student.model(inputs).logits[0, -1].softmax(-1).topk(5)
        assert [guess.probability for guess in both.student] == pytest.approx(likely.values.tolist(), rel=1e-4)
        assert both.teacher == teacher.top
        shares = [guess.probability for guess in both.target]
        assert shares == sorted(shares, reverse=True)
        assert 0.0 < sum(shares) <= 1.0 + 1e-5


def test_a_continuation_is_the_likeliest_and_ends_where_the_windows_do(student: Student) -> None:
    written = continued(student.model, [student.prefix_id, 5], 6, max_length=6)
    assert len(written) == 4
    read = torch.tensor([[student.prefix_id, 5, *written]])
    assert student.model(read).logits[0, 1:-1].argmax(-1).tolist() == written
    assert continued(student.model, [student.prefix_id, 5], 2, max_length=6) == written[:2]
    assert continued(student.model, [student.prefix_id, 5], 2, max_length=2) == []


def test_samples_begin_with_the_validation_text(chain: Chain, student: Student) -> None:
    windows, folder = chain.folder / "data/windows", chain.folder / "models/teacher"
    model = load_causal_lm(folder, torch.float32, torch.device("cpu"))
    teacher = Teacher(model, spelled_by(folder), max_length=PROMPT_TOKENS + 4)
    params = Evaluate(batch_windows=4, samples=2, sample_tokens=12)
    samples = teacher_samples(windows, teacher, params)
    store = WindowStore(windows / "teacher/validation", TEACHER_WINDOWS)
    texts = ["".join((teacher.spelled[n] or b"").decode("latin-1") for n in store.tokens("token_ids", w).tolist())
             for w in range(len(store))]  # fmt: skip
    assert len({each.prompt for each in samples}) == 2
    for each in samples:
        assert any(text.startswith(each.prompt + each.text) for text in texts)
        assert each.written
    both = student_samples(student, samples, 3)
    assert [(each.prompt, each.text, each.teacher) for each in both] == [(e.prompt, e.text, e.written) for e in samples]
    ids = student.tokenizer.encode(samples[0].prompt, add_special_tokens=False).ids
    said = b"".join(student.spelled[n] or b"" for n in continued(student.model, [student.prefix_id, *ids], 3, 99))
    assert both[0].student in said.decode("utf-8", "backslashreplace")


def test_examples_survive_the_file(positions: list[TeacherPosition]) -> None:
    examples = TeacherExamples(about={"model_type": "llama", "vocab_size": 4}, positions=positions, samples=[])
    assert TeacherExamples.model_validate(json.loads(json.dumps(examples.model_dump(mode="json")))) == examples


@pytest.mark.parametrize(
    ("card", "known"),
    [
        (None, {}),
        ("---\nlicense: apache-2.0\ntags: [a]\n---\n# Card\n", {"licence": "apache-2.0"}),
        ("---\nlicense: other\nlicense_name: own\n---\n", {"licence": "own"}),
        ("---\ntags: [a]\n---\nlicense: mit\n", {}),
        ("# No metadata\n", {}),
    ],
)
def test_a_licence_is_what_a_card_says(tmp_path: Path, card: str | None, known: dict[str, str]) -> None:
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert licence_facts(FolderModel(kind="folder", path=str(tmp_path))) == known


def test_facts_of_a_model_are_what_its_configuration_says(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": 8, "num_experts": null, "a": 1}')
    assert read_model_facts(tmp_path) == {"model_type": "llama", "hidden_size": 8}
