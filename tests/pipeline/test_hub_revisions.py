"""What the hub moves is refused before a long run, or followed once. The hub itself is never contacted."""

from pathlib import Path
from typing import Any

import pytest

from moe_distill.config.profile import Profile
from moe_distill.errors import ConfigError, DataError
from moe_distill.pipeline.hub_revisions import check_revisions
from moe_distill.pipeline.parameter_checks import check_parameters
from moe_distill.utils.hub_commits import COMMITS, record_commit, recorded_commit
from stages import check
from tests.params import fixed_params, shipped_profile

COMMIT = "b08601e04326c79dfdd32d625aee71d232d685c3"
KEYS = ("corpus.sources[0]", "models.teacher", "models.student")


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)


def profile(revisions: dict[str, str], allowed: tuple[str, ...] = ()) -> Profile:
    """The p100 profile with these revisions, and commits elsewhere."""
    values: dict[str, Any] = shipped_profile("p100").model_dump()
    models = values["models"]
    for key, each in zip(KEYS, (values["corpus"]["sources"][0], models["teacher"], models["student"]), strict=True):
        each |= {"revision": revisions.get(key, COMMIT), "allow_unpinned": key in allowed}
    return Profile.model_validate(values)


def test_commits_are_taken_without_a_word() -> None:
    assert check_revisions(profile({})) == ([], [])
    assert check_revisions(fixed_params("tiny").profile) == ([], [])


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("revision", ["main", "v1.0", COMMIT[:39], COMMIT.upper()])
def test_a_revision_that_is_no_commit_is_refused_with_the_command_that_prints_it(key: str, revision: str) -> None:
    [wrong], _ = check_revisions(profile({key: revision}))
    repository = {
        "corpus.sources[0]": "datasets/Salesforce/wikitext",
        "models.teacher": "huihui-ai/Huihui-MoE-1B-A0.6B",
        "models.student": "HuggingFaceTB/SmolLM-135M",
    }[key]
    said = str(wrong)
    assert f"`{key}.revision` is `{revision}`, which is no commit" in said
    assert f"`git ls-remote https://huggingface.co/{repository} {revision}`" in said
    assert f"`{key}.allow_unpinned: true`" in said
    assert "\n" not in said


def test_every_revision_that_is_no_commit_is_told() -> None:
    wrong, warnings = check_revisions(profile(dict.fromkeys(KEYS, "main"), allowed=("models.teacher",)))
    assert [str(each).partition(".revision`")[0] for each in wrong] == ["`corpus.sources[0]", "`models.student"]
    assert [each.partition(".revision`")[0] for each in warnings] == ["`models.teacher"]


def test_a_plan_only_warns_of_it() -> None:
    """It is made before anything is downloaded."""
    [warning, *_] = check_parameters(fixed_params("p100"), needs_commits=False)
    assert "`models.teacher.revision` is `main`, which is no commit" in warning
    with pytest.raises(ConfigError, match="which is no commit"):
        list(check_parameters(fixed_params("p100")))


def test_the_stage_check_refuses_the_profile_as_it_is_shipped() -> None:
    """The teacher's commit cannot be known without the hub: the user writes it there."""
    with pytest.raises(ConfigError, match=r"models\.teacher\.revision"):
        check.main(fixed_params("p100"))
    assert not Path("data").exists()


def test_the_user_may_follow_a_branch_and_is_told_what_it_was() -> None:
    followed = profile({"models.teacher": "main"}, allowed=("models.teacher",))
    _, [said] = check_revisions(followed)
    assert said == "`models.teacher.revision` is no commit: `main` is not downloaded yet"
    record_commit("model", "huihui-ai/Huihui-MoE-1B-A0.6B", "main", COMMIT)
    record_commit("dataset", "huihui-ai/Huihui-MoE-1B-A0.6B", "main", COMMIT[::-1])
    _, [said] = check_revisions(followed)
    assert said == f"`models.teacher.revision` is no commit: `main` was {COMMIT} at its first download, and stays so"


def test_a_commit_is_its_own_record() -> None:
    record_commit("model", "a/b", COMMIT, COMMIT[::-1])
    assert recorded_commit("model", "a/b", COMMIT) == COMMIT
    assert not COMMITS.exists()


def test_records_of_an_experiment_lie_in_the_main_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "main"))
    record_commit("model", "a/b", "main", COMMIT)
    assert (tmp_path / "main" / COMMITS).is_file()
    assert recorded_commit("model", "a/b", "main") == COMMIT


@pytest.mark.parametrize("content", ["{", "[]", '{"model a/b main": "main"}'])
def test_a_record_that_cannot_be_read_is_named(content: str) -> None:
    COMMITS.parent.mkdir()
    COMMITS.write_text(content)
    with pytest.raises(DataError, match=r"hub_commits\.json cannot be used"):
        recorded_commit("model", "a/b", "main")
