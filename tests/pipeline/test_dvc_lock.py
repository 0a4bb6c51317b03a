"""What dvc.lock records was made with the parameters that stand in the files now, or was not."""

from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from moe_distill.errors import DataError
from moe_distill.pipeline.dvc_lock import Output, made_as_asked, recorded_outputs

PROFILE = {"models": {"teacher": {"steps": 3, "learning_rate": 0.001, "sizes": [1, 2]}, "seed": 0}}


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("profiles").mkdir()
    write("params.yaml", {"profile": "one", "seed": 0})
    for name in ("one", "two"):
        write(f"profiles/{name}.yaml", PROFILE)
    recorded = {
        "corpus": {"params": {"params.yaml": {"profile": "one"}}},
        "models": {"params": {"profiles/one.yaml": {"models.teacher": PROFILE["models"]["teacher"]}}},
        "train": {"params": {"params.yaml": {"seed": 0}, "profiles/one.yaml": {"models.seed": 0}}},
    }
    write("dvc.lock", {"schema": "2.0", "stages": recorded})


def write(path: str, content: object) -> None:
    Path(path).write_text(yaml.safe_dump(content))


def test_what_is_as_recorded_or_not_recorded_is_taken_to_be() -> None:
    assert made_as_asked("corpus", "models", "train")
    assert made_as_asked("never_run")
    Path("profiles/one.yaml").write_text(Path("profiles/one.yaml").read_text().replace("0.001", "1e-3"))
    assert made_as_asked("models"), "a number for DVC, a text for PyYAML"
    Path("dvc.lock").unlink()
    assert made_as_asked("models")


@pytest.mark.parametrize("changed", [{"steps": 4}, {"sizes": [1, 3]}, {"sizes": [1]}, {"more": 1}])
def test_a_changed_value_is_seen_by_the_stages_that_depend_on_it(changed: dict[str, object]) -> None:
    teacher = PROFILE["models"]["teacher"] | changed  # type: ignore[operator]
    write("profiles/one.yaml", PROFILE | {"models": PROFILE["models"] | {"teacher": teacher}})
    assert not made_as_asked("corpus", "models")
    assert made_as_asked("corpus", "train")


def test_another_profile_is_seen_even_with_equal_values() -> None:
    write("params.yaml", {"profile": "two", "seed": 0})
    assert not made_as_asked("models")
    assert not made_as_asked("corpus")


def test_a_key_or_a_file_that_is_gone_is_a_change() -> None:
    write("params.yaml", {"profile": "one"})
    assert not made_as_asked("train")
    assert made_as_asked("models")
    Path("profiles/one.yaml").unlink()
    assert not made_as_asked("models")


@pytest.mark.parametrize("content", ["stages:\n<<<<<<< HEAD\n  corpus:\n=======\n", "", "schema: '2.0'\n", "stages:\n"])
def test_what_a_merge_has_left_is_told_in_one_line(content: str) -> None:
    Path("dvc.lock").write_text(content)
    with pytest.raises(DataError, match=r"^dvc.lock is not what DVC writes; .*: git checkout HEAD dvc.lock$"):
        made_as_asked("corpus")


def test_a_file_that_a_kill_has_cut_off_anywhere_is_told_in_one_line() -> None:
    outs = [{"path": "data/corpus", "hash": "md5", "md5": "0" * 32, "size": 1}]
    stage = {"cmd": "true", "params": {"params.yaml": {"profile": "one"}}, "outs": outs}
    whole = yaml.safe_dump({"schema": "2.0", "stages": {"corpus": stage}}, sort_keys=False)
    for length in range(len(whole)):
        Path("dvc.lock").write_text(whole[:length])
        with suppress(DataError):
            made_as_asked("corpus")
        with suppress(DataError):  # where no key is missing, it is read
            recorded_outputs(Path())
    Path("dvc.lock").write_text(whole)
    assert recorded_outputs(Path()) == [Output(Path("data/corpus"), "0" * 32)]
