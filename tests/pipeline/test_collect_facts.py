"""What a report tells of a run: its commit, the command that makes it again, and what its stages wrote."""

import os
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from moe_distill.pipeline.collect_facts import _commands, collect_facts
from moe_distill.pipeline.stage_times import record_time
from tests.params import fixed_params, make_workspace

IDENTITY = ("-c", "user.name=a", "-c", "user.email=a@example.com")


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace that is no git repository yet, nor inside one."""
    for name in ("DVC_ROOT", "DVC_EXP_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    make_workspace(tmp_path, fixed_params().profile)
    return tmp_path


def commit() -> str:
    for command in (["init", "-q"], ["add", "-A"], [*IDENTITY, "commit", "-q", "-m", "start"]):
        subprocess.run(["git", *command], check=True)
    return subprocess.check_output(["git", "rev-parse", "HEAD"], text=True).strip()


def edit(path: str, old: str, new: str) -> None:
    text = Path(path).read_text()
    assert old in text
    Path(path).write_text(text.replace(old, new))


def test_as_committed_the_command_is_dvc_repro() -> None:
    head = commit()
    facts = collect_facts(fixed_params())
    assert (facts.commit, facts.changed, facts.experiment) == (head, (), "")
    assert facts.commands == (f"git checkout {head}", "make install", "dvc repro")
    assert "torch" in facts.versions


def test_what_git_says_is_utf8_in_any_locale() -> None:
    Path("params.yaml").write_text(Path("params.yaml").read_text() + "# größer\n", encoding="utf-8")
    commit()
    code = "from moe_distill.pipeline.collect_facts import _git; print(ascii(_git('show', 'HEAD:params.yaml')))"
    ascii_only = os.environ | {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    said = subprocess.check_output([sys.executable, "-c", code], env=ascii_only, text=True)
    assert "gr\\xf6\\xdfer" in said


def test_what_differs_from_the_commit_is_set_by_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    commit()
    edit("params.yaml", "temperature: 1.0", "temperature: 2.5")
    edit("profiles/test.yaml", "baseline: full", "baseline: none")
    edit("dvc.yaml", "stages:", "# another\nstages:")
    monkeypatch.setenv("DVC_EXP_NAME", "quiet-frog")
    facts = collect_facts(fixed_params())
    assert facts.commands[-1] == "dvc exp run -S temperature=2.5 -S profiles/test.yaml:baseline=none"
    assert facts.changed == ("dvc.yaml",), "parameters are no change of the code"
    assert facts.experiment == "quiet-frog"


def test_a_profile_that_is_in_no_commit_is_to_be_put_back() -> None:
    commit()
    Path("profiles/mine.yaml").write_text("")
    [_, told, *_] = _commands("HEAD", "profiles/mine.yaml")
    assert told == "# put profiles/mine.yaml back as it was here: that commit has none that can be read"


def test_a_shell_dvc_and_its_grammar_take_the_command_as_it_stands(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also below the repository's root, with a key more, a key less, and a list of groups."""
    (workspace / "below").mkdir()
    make_workspace(workspace / "below", fixed_params().profile)
    monkeypatch.chdir(workspace / "below")
    paths = ["my texts/it's.txt", "b.jsonl", "true", "1.5", 'quo"te', "back\\slash"]
    committed = yaml.safe_load(Path("profiles/test.yaml").read_text())
    subprocess.run(["git", "init", "-q", str(workspace)], check=True)
    subprocess.run(["git", "add", "."], check=True)
    subprocess.run(["git", *IDENTITY, "commit", "-q", "-m", "start"], check=True)
    profile = yaml.safe_load(Path("profiles/test.yaml").read_text())
    profile["corpus"]["sources"] = [{"kind": "files", "paths": paths, "weight": 0.5, "max_documents": None}]
    del profile["train"]["weight_decay"]
    profile["evaluate"]["another"] = False
    Path("profiles/test.yaml").write_text(yaml.safe_dump(profile))
    command = shlex.split(list(_commands("", "profiles/test.yaml"))[-1])
    parser = OverridesParser.create()
    for change in command[4::2]:
        override = parser.parse_override(change.removeprefix("profiles/test.yaml:"))
        *groups, last = override.key_or_group.split(".")
        group = committed
        for name in groups:
            group = group[name]
        assert override.is_add() is (last not in group)
        if override.is_delete():
            del group[last]
        else:
            group[last] = override.value()
    assert command[:4] == ["dvc", "exp", "run", "-S"]
    assert committed == profile


def test_without_git_the_run_is_told_all_the_same() -> None:
    facts = collect_facts(fixed_params())
    assert (facts.commit, facts.changed) == ("", ())
    assert facts.commands == ("make install", "dvc repro")


def test_stages_are_told_with_what_they_wrote(tmp_path: Path) -> None:
    for file, n_bytes in (("data/corpus/a", 5), ("data/corpus/b/c", 7), ("models/student_init/d", 11)):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(bytes(n_bytes))
    Path("metrics").mkdir()
    Path("metrics/corpus.json").write_text("1")
    record_time("corpus", datetime(2020, 2, 3, tzinfo=UTC))
    facts = collect_facts(fixed_params())
    stages = {each.name: each for each in facts.stages}
    assert list(stages)[:4] == ["check", "corpus", "models@teacher", "models@student"]
    assert (stages["corpus"].n_bytes, stages["models@student"].n_bytes, stages["teacher"].n_bytes) == (13, 11, 0)
    assert stages["corpus"].seconds is not None
    assert stages["teacher"].seconds is None
    assert facts.collected == "2020-02-03"


@pytest.mark.parametrize("broken", ["seed: [1,\n", "- a list\n", "", "caf\xe9: 1\n"])
def test_a_committed_file_that_was_no_yaml_of_keys_does_not_end_the_evaluation(broken: str) -> None:
    whole = Path("profiles/test.yaml").read_bytes()
    Path("profiles/test.yaml").write_text(broken, encoding="latin1")
    head = commit()
    Path("profiles/test.yaml").write_bytes(whole)
    back = "# put profiles/test.yaml back as it was here: that commit has none that can be read"
    assert collect_facts(fixed_params()).commands == (f"git checkout {head}", back, "make install", "dvc repro")
