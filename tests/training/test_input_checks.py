"""Folders that do not belong together are refused before the first step: both fingerprints, and what mends it."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from moe_distill.config.model_keys import TinyStudent
from moe_distill.errors import ConfigError, DataError
from moe_distill.models.provide import provide_student, provide_teacher
from moe_distill.shards.provenance import capture_fingerprint, tokenizer_fingerprint
from moe_distill.shards.reader import ShardReader
from moe_distill.shards.teacher_store import TEACHER_TARGETS
from moe_distill.shards.window_store import STUDENT_WINDOWS, TEACHER_WINDOWS, WindowStore
from moe_distill.teacher.columns import run_of
from moe_distill.teacher.run import run_teacher
from moe_distill.training.phases import control, train_kd, train_router
from moe_distill.utils.checksummed_json import read_json_object, verified_content, write_checksummed_json
from moe_distill.utils.files import Json
from tests.chain import Chain, capture, make_chain, tokenize, topic_texts
from tests.shards.forge import forge_column, forge_metadata, forget_merges

Stage = Callable[..., object]


@pytest.fixture
def copied(chain: Chain, tmp_path: Path) -> Chain:
    return chain.copy(tmp_path / "chain")


def refusal(chain: Chain, stage: Stage = train_kd, with_targets: bool = True) -> str:
    """What a stage says when it refuses its inputs; it has trained and written nothing."""
    with pytest.raises(DataError) as caught:
        stage(chain.params, chain.inputs(with_targets), chain.outputs())
    assert not list((chain.folder / ".work").iterdir())
    return str(caught.value)


def metadata(folder: Path, store_format: str, key: str) -> str:
    return str(ShardReader(folder, store_format).index.metadata[key])


def test_folders_that_belong_together_train(copied: Chain) -> None:
    assert train_kd(copied.params, copied.inputs(), copied.outputs()).steps > 0


@pytest.mark.parametrize(
    ("positions", "temperature", "are_known", "says"),
    [
        ("auto", 1.0, True, None),
        ("auto", 1.0, False, "no merges of the student's tokenizer are known"),
        ("auto", 2.0, True, "the temperature is not 1"),
        ("aligned", 1.0, True, None),
    ],
)
def test_where_kd_is(
    copied: Chain,
    capsys: pytest.CaptureFixture[str],
    positions: str,
    temperature: float,
    are_known: bool,
    says: str | None,
) -> None:
    """Inside the teacher's tokens too every position has a target; where it was asked for and is not so, it is told."""
    changes = {"kd_positions": positions, "temperature": temperature}
    experiment = copied.params.experiment.model_copy(update=changes)
    if not are_known:
        forget_merges(copied.windows / "vocabulary_map")
    result = train_kd(copied.params.model_copy(update={"experiment": experiment}), copied.inputs(), copied.outputs())
    counts, is_inside = result.final.counts, positions == "auto" and says is None
    assert (counts.with_target == counts.tokens) is is_inside
    told = f"train_kd: KD at aligned positions alone (kd_positions): {says}\n"
    assert (told in capsys.readouterr().out) is (says is not None)


def student_params(chain: Chain) -> TinyStudent:
    params = chain.params.profile.models.student
    assert isinstance(params, TinyStudent)
    return params


def another_student(chain: Chain, **changes: object) -> None:
    params = student_params(chain)
    tokenizer = params.tokenizer.model_copy(update={"vocabulary_size": 310})
    folder = chain.folder / "models/student_init"
    shutil.rmtree(folder)
    provide_student(
        params.model_copy(update={"tokenizer": tokenizer} | changes), 0, chain.folder / "data/corpus", folder
    )


@pytest.mark.parametrize("stage", [train_kd, control])
def test_windows_of_another_tokenizer(copied: Chain, stage: Stage) -> None:
    made_with = metadata(copied.windows / "train", STUDENT_WINDOWS, "tokenizer")
    another_student(copied)
    said = refusal(copied, stage, with_targets=stage is train_kd)
    assert f"{copied.windows}/train was made with tokenizer {made_with}" in said
    assert f"models/student_init has {tokenizer_fingerprint(copied.folder / 'models/student_init')}" in said
    assert said.endswith("run: dvc repro -f tokenize")


def test_a_student_init_whose_vocabulary_differs(copied: Chain) -> None:
    """The windows' own tokenizer stands beside matrices with fewer rows."""
    tokenizer = (copied.folder / "models/student_init/tokenizer.json").read_bytes()
    params = student_params(copied).tokenizer.model_copy(update={"vocabulary_size": 290})
    another_student(copied, tokenizer=params)
    (copied.folder / "models/student_init/tokenizer.json").write_bytes(tokenizer)
    said = refusal(copied)
    assert "a tokenizer of 300" in said
    assert "has 290 rows" in said
    assert "`models.student`" in said


def test_shards_of_other_capture_parameters(copied: Chain) -> None:
    other = copied.params.profile.teacher.model_copy(update={"k": 9})
    profile = copied.params.profile.model_copy(update={"teacher": other})
    capture(copied.folder, copied.params.model_copy(update={"profile": profile}))
    said = refusal(copied)
    assert f"{copied.targets}/train was captured with parameters {capture_fingerprint(other)}" in said
    assert f"is {capture_fingerprint(copied.params.profile.teacher)}" in said
    assert said.endswith("run: dvc repro -f teacher")


@pytest.fixture(scope="module")
def other_corpus(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    return make_chain(tmp_path_factory.mktemp("other"), chain.params, topic_texts(40, start=20))


def test_shards_of_another_corpus(copied: Chain, other_corpus: Chain) -> None:
    shutil.rmtree(copied.targets)
    shutil.copytree(other_corpus.targets, copied.targets)
    said = refusal(copied)
    assert metadata(other_corpus.targets / "train", TEACHER_TARGETS, "windows_fingerprint") in said
    assert metadata(copied.windows / "train", STUDENT_WINDOWS, "teacher_windows") in said
    assert said.endswith("run: dvc repro -f teacher")


def test_a_single_split_of_another_corpus(copied: Chain, other_corpus: Chain) -> None:
    shutil.rmtree(copied.targets / "validation")
    shutil.copytree(other_corpus.targets / "validation", copied.targets / "validation")
    assert f"{copied.targets}/validation was made from teacher windows" in refusal(copied)


def test_a_shard_of_another_tokenizer(copied: Chain) -> None:
    """The vocabulary map moves another teacher's ids: their mass would go to the wrong tokens."""
    own = metadata(copied.targets / "train", TEACHER_TARGETS, "tokenizer")
    for split in ("train", "validation"):
        forge_metadata(copied.targets / split, tokenizer="of another teacher")
    said = refusal(copied)
    assert f"vocabulary_map maps teacher tokenizer {own}" in said
    assert "teacher_shards/train has of another teacher" in said
    assert said.endswith("run: dvc repro -f tokenize")


def test_a_map_of_another_student(copied: Chain) -> None:
    forge_metadata(copied.windows / "vocabulary_map", student_tokenizer="other")
    assert "vocabulary_map maps student tokenizer other" in refusal(copied)


def test_a_map_of_fewer_ids_than_the_teacher_has_rows(copied: Chain) -> None:
    rows = int(metadata(copied.targets / "train", TEACHER_TARGETS, "output_rows"))
    for split in ("train", "validation"):
        forge_metadata(copied.targets / split, output_rows=rows + 1)
    assert f"vocabulary_map has {rows} teacher ids" in (said := refusal(copied))
    assert f"teacher_shards/train has {rows + 1}" in said


@pytest.mark.parametrize("stage", [train_kd, train_router])
def test_shards_or_head_of_another_teacher(copied: Chain, stage: Stage) -> None:
    """The same corpus, tokenizer and parameters, another revision of the weights."""
    own = metadata(copied.targets / "train", TEACHER_TARGETS, "teacher_fingerprint")
    head = copied.folder / "kept"
    shutil.copytree(copied.head, head)
    teacher = copied.folder / "models/teacher"
    shutil.rmtree(teacher)
    provide_teacher(copied.params.profile.models.teacher, 1, copied.folder / "data/corpus", teacher)
    capture(copied.folder, copied.params)
    other = metadata(copied.targets / "train", TEACHER_TARGETS, "teacher_fingerprint")
    shutil.rmtree(copied.head)
    head.rename(copied.head)
    said = refusal(copied, stage)
    assert f"teacher_shards/train is of teacher {other}" in said
    assert f"models/teacher_head is of {own}" in said
    assert said.endswith("run: dvc repro -f teacher")


def test_a_changed_description_of_the_head_is_refused_by_both_hashes(copied: Chain) -> None:
    path = copied.head / "teacher_head.json"
    path.write_text(path.read_text().replace('"experts_per_token": 2', '"experts_per_token": 3'))
    assert "teacher_head.json is corrupt; sha256" in refusal(copied, train_router)
    write_checksummed_json(path, {**unsealed_again(path), "format_version": 1})
    assert "moe-distill/teacher-head version 1, expected moe-distill/teacher-head version 3" in refusal(copied)


def unsealed_again(path: Path) -> dict[str, Json]:
    """The content under a new seal."""
    content = json.loads(path.read_bytes())
    del content["sha256"]
    write_checksummed_json(path, content)
    return verified_content(path, read_json_object(path))


def test_a_position_that_is_not_in_the_shards(copied: Chain) -> None:
    positions = ShardReader(copied.targets / "train", TEACHER_TARGETS).rows("positions")

    def point_beyond(rows: Tensor) -> None:
        rows[5] = positions

    path = forge_column(copied.windows / "train", 0, "teacher_rows", point_beyond)
    said = refusal(copied)
    assert f"{path}: field teacher_rows, row " in said
    assert f" is {positions}; it must be from -1 to {positions - 1}" in said


def test_teacher_windows_of_another_tokenizer_are_refused_before_the_teacher_runs(copied: Chain) -> None:
    path = copied.folder / "models/teacher/tokenizer.json"
    before = tokenizer_fingerprint(path.parent)
    path.write_text(path.read_text() + "\n")
    with pytest.raises(
        DataError, match=rf"tokenizer {before}; .*models/teacher has {tokenizer_fingerprint(path.parent)}"
    ):
        run_teacher(
            copied.params.profile.teacher, copied.folder / "data/windows/teacher", path.parent, copied.folder / "x"
        )
    assert not (copied.folder / "x").exists()
    tokenize(copied.folder, copied.params)  # the command that mends it
    capture(copied.folder, copied.params)


def test_too_few_states_for_the_router_are_refused_before_the_teacher_runs(copied: Chain) -> None:
    """As many as the runs of the training windows hold: drawn here as in the capture."""
    capture_params = copied.params.profile.teacher.model_copy(update={"hidden_fraction": 0.2})
    folders = copied.folder / "data/windows/teacher", copied.folder / "models/teacher", copied.folder / "x"
    counts = WindowStore(folders[0] / "train", TEACHER_WINDOWS).token_counts.tolist()
    runs = [run for n, count in enumerate(counts) if (run := run_of(n, count, capture_params, capture_params.seed))]
    assert runs
    enough = math.ceil(256 * len(counts) / (64 * len(runs)))
    with pytest.raises(ConfigError, match=r"a step sees \d+ positions .* needs 256; raise `teacher.hidden_fraction`"):
        run_teacher(capture_params, *folders, step_windows=enough - 1)
    assert not folders[2].exists()
    run_teacher(capture_params, *folders, step_windows=enough)
