"""`moe-distill inspect` on the stores of a small pair, against what the readers say of the same place."""

import shutil
from pathlib import Path

import pytest
import torch

from moe_distill.commands.decoded_examples import Pieces
from moe_distill.commands.inspect_store import inspect
from moe_distill.config.params import ExperimentParams
from moe_distill.errors import ConfigError, DataError
from moe_distill.shards.teacher_store import open_targets
from moe_distill.shards.window_store import STUDENT_WINDOWS, WindowStore
from moe_distill.targets.next_token_counts import load_vocabulary_map
from moe_distill.targets.window_targets import WindowTargets, target_settings
from tests.chain import Chain
from tests.params import fixed_params

EXPERIMENT = fixed_params().experiment.model_copy(update={"temperature": 2.0})


@pytest.fixture
def project(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> Chain:
    monkeypatch.chdir(chain.folder)
    return chain


def lines(folder: str, row: int | None = None, experiment: ExperimentParams = EXPERIMENT) -> list[str]:
    return list(inspect(Path(folder), row, experiment))


@pytest.mark.usefixtures("project")
def test_fields_and_sizes_of_every_store_below_a_folder() -> None:
    found = lines("data/teacher_shards")
    for split in ("train", "validation"):
        reader = open_targets(Path("data/teacher_shards", split))
        size = sum(path.stat().st_size for path in reader.folder.glob("*.safetensors"))
        files = len(reader.index.files)
        told = f"data/teacher_shards/{split}: moe-distill/teacher-targets version 6, {files} files, {size:,} bytes"
        assert told in found
        assert any(line.startswith(f"  table positions: {reader.rows('positions'):,} rows of ") for line in found)
    assert "    topk_ids           int32    [8]" in found
    assert "    target_logprob     float32" in found
    rows = open_targets(Path("data/teacher_shards/train")).index.metadata["output_rows"]
    assert found.count(f"  output_rows: {rows}") == 2


def test_one_position_is_decoded_with_both_sides(project: Chain) -> None:
    """The row, the text before it, and the first five of teacher and target, as the readers have them."""
    found = lines("data/teacher_shards/validation")
    (start,) = (number for number, line in enumerate(found) if "of positions: window" in line)
    words = found[start].replace(":", "").replace(",", "").split()
    row, window, place = int(words[1]), int(words[5]), int(words[-1])
    store = WindowStore(project.windows / "validation", STUDENT_WINDOWS)
    assert int(store.tokens("teacher_rows", window)[place]) == row
    teacher, student = (Pieces.of(Path("models", name)) for name in ("teacher", "student_init"))
    ids = store.tokens("token_ids", window)
    read = student.tokenizer.decode(ids[:place].tolist())
    assert eval(found[start + 1].split("read  ")[1]).removeprefix("…") == read[-70:]
    assert f"student's {student.show(int(ids[place]))}" in found[start + 2]
    targets = open_targets(project.targets / "validation")
    train = WindowStore(project.windows / "train", STUDENT_WINDOWS)
    vocabulary_map = load_vocabulary_map(project.windows / "vocabulary_map", train)
    target = WindowTargets(store, targets, vocabulary_map, target_settings(EXPERIMENT)).of(window)
    at = target.entry_positions_Z == place
    pairs = zip((-target.entry_probs_Z[at]).tolist(), target.entry_ids_Z[at].tolist(), strict=True)
    best = sorted(pairs)[:5]
    probs = targets.slice("topk_logprobs", row, row + 1)[0].float().exp()
    assert "the student's target, T = 2" in found[start + 3]
    for number, (negative, student_id) in enumerate(best):
        line, teacher_id = found[start + 4 + number], int(targets.slice("topk_ids", row, row + 1)[0, number])
        assert line.startswith(f"    {float(probs[number]):.4f}  {teacher.show(teacher_id)}")
        assert line.endswith(f"{-negative:.4f}  {student.show(student_id)}")


def test_a_target_at_a_temperature_of_1_knows_that_the_teachers_token_may_have_gone_on(project: Chain) -> None:
    store, train = (WindowStore(project.windows / split, STUDENT_WINDOWS) for split in ("validation", "train"))
    targets, experiment = open_targets(project.targets / "validation"), fixed_params().experiment
    of_windows = []
    for window in range(len(store)):
        rows, largest = store.tokens("teacher_rows", window), []
        for inside in (True, False):
            vocabulary_map = load_vocabulary_map(project.windows / "vocabulary_map", train, inside_tokens=inside)
            target = WindowTargets(store, targets, vocabulary_map, target_settings(experiment)).of(window)
            zeros, positions = torch.zeros(len(rows)), target.entry_positions_Z.long()
            largest.append(zeros.scatter_reduce(0, positions, target.entry_probs_Z, "amax").masked_fill(rows < 0, 0.0))
        place = int((largest[0] - largest[1]).abs().argmax())
        of_windows.append((int(rows[place]), float(largest[0][place]), float(largest[1][place])))
    row, inside_tokens, aligned = max(of_windows, key=lambda found: abs(found[1] - found[2]))
    found = lines("data/teacher_shards/validation", row, experiment)
    (start,) = (number for number, line in enumerate(found) if "the student's target, T = 1" in line)
    told = [each.strip() for each in found[start + 1].split("  ")]
    assert f"{inside_tokens:.4f}" in told[-2:]
    assert f"{aligned:.4f}" not in told[-2:]


def test_a_row_is_asked_for_by_its_number(project: Chain) -> None:
    rows = torch.cat(list(WindowStore(project.windows / "train", STUDENT_WINDOWS).reader.columns("teacher_rows")))
    aligned = int(rows[rows >= 0][7])
    lonely = next(row for row in range(int(rows.max())) if row not in set(rows.tolist()))
    assert any(f"row {aligned} of positions: window " in line for line in lines("data/teacher_shards/train", aligned))
    found = lines("data/teacher_shards/train", lonely)
    assert any("no student position stands before the same byte" in line for line in found)
    assert "more kept" in found[-1], "what the teacher said is shown all the same"
    with pytest.raises(
        ConfigError, match=r"--row is -1; data/teacher_shards/train has [\d,]+ rows of positions; give 0 to"
    ):
        lines("data/teacher_shards/train", -1)


@pytest.mark.usefixtures("project")
def test_windows_map_and_head_are_shown_in_pieces() -> None:
    found = lines("data/windows")
    assert sum(line.startswith("data/windows/") for line in found) == 5
    assert sum("prefix '<|endoftext|>', then " in line for line in found) == 2, "one window of each kind"
    assert any("teacher's row " in line and "its token is as long" in line for line in found)
    assert any(" -> " in line for line in found)
    assert any(
        line.startswith("models/teacher_head: moe-distill/teacher-head") for line in lines("models/teacher_head")
    )


def test_without_windows_or_models_what_is_there_is_shown(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(chain.copy(tmp_path / "chain").folder)
    shutil.rmtree("data/windows")
    assert any(
        "the text is in data/windows, which is not here: dvc repro tokenize" in line
        for line in lines("data/teacher_shards")
    )
    shutil.rmtree("models/teacher")
    assert any(
        "models/teacher and models/student_init are: dvc repro models" in line for line in lines("data/teacher_shards")
    )


def test_what_is_no_store_names_the_command_that_makes_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data/corpus").mkdir(parents=True)
    Path("data/file").touch()
    for folder, told in (
        ("data/file", "data/file is a file; give its folder: moe-distill inspect data"),
        ("data/teacher_shards", "data/teacher_shards does not exist; run: dvc repro teacher"),
        ("data/windows/student", "data/windows/student does not exist; run: dvc repro tokenize"),
        (
            "data/corpus",
            "data/corpus holds no store; give one of data/teacher_shards, models/teacher_head, data/windows",
        ),
    ):
        with pytest.raises(DataError) as caught:
            lines(folder)
        assert str(caught.value) == told


def test_a_flipped_bit_is_one_line(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(chain.copy(tmp_path / "chain").folder)
    path = Path("data/windows/student/train/index.json")
    path.write_text(path.read_text().replace('"rows"', '"rowz"', 1))
    with pytest.raises(DataError, match="corrupt"):
        lines("data/windows/student")
