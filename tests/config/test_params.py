"""Parameters are validated at the edge: every shipped file parses, every mistake is named."""

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from moe_distill import cli
from moe_distill.config.corpus_keys import Corpus
from moe_distill.config.params import ExperimentParams, load_params
from moe_distill.config.profile import Profile
from moe_distill.errors import ConfigError
from moe_distill.losses.registry import HIDDEN_TERMS, ROUTER_TERMS
from tests.params import PARAMS, ROOT

PROFILES = sorted(path.stem for path in (ROOT / "profiles").glob("*.yaml"))
Replace = Callable[[str, str, str], None]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    shutil.copy(PARAMS, tmp_path)
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    return tmp_path


@pytest.fixture
def replace(tree: Path) -> Replace:
    """Replace a regular expression, once, at the beginning of a line (after its indentation) of a copied file."""

    def replace_line(file: str, pattern: str, new: str) -> None:
        text, found = re.subn(rf"(?m)^( *){pattern}", rf"\g<1>{new}", (tree / file).read_text(), count=1)
        assert found, f"{file} has no {pattern}"
        (tree / file).write_text(text)

    return replace_line


@pytest.mark.parametrize("profile", PROFILES)
def test_every_shipped_profile_parses(tree: Path, replace: Replace, profile: str) -> None:
    replace("params.yaml", r"profile: \w+", f"profile: {profile}")
    params = load_params(tree)
    assert params.experiment.profile == profile
    written = yaml.safe_load((tree / "profiles" / f"{profile}.yaml").read_text())
    assert params.profile.train.max_steps == written["train"]["max_steps"]


def test_the_shipped_params_parse_whatever_their_values() -> None:
    """As the user may have edited them; the profile they name may be one of the user's."""
    load_params(ROOT)
    assert set(yaml.safe_load((ROOT / "params.yaml").read_text())) == set(ExperimentParams.model_fields)


def test_kd_weight_is_a_share_or_auto(tree: Path, replace: Replace) -> None:
    replace("params.yaml", r"kd_weight: [\d.]+", "kd_weight: 0.25")
    assert load_params(tree).experiment.kd_weight == 0.25
    replace("params.yaml", r"kd_weight: [\d.]+", "kd_weight: auto")
    assert load_params(tree).experiment.kd_weight == "auto"


def test_the_embedded_default_is_shipped() -> None:
    assert {"tiny", "test"} <= set(PROFILES)


MISTAKES = {  # file, what stands there, what somebody writes, key named, said of it
    "misspelt": ("params.yaml", r"temperature: [\d.]+", "temprature: 3.0", "temprature", "is not a known key"),
    "left out": ("params.yaml", r"temperature: [\d.]+", "", "temperature", "is missing"),
    "unknown": ("params.yaml", r"temperature:", "extra: 1\ntemperature:", "extra", "is not a known key"),
    "ill-typed": ("params.yaml", r"temperature: [\d.]+", "temperature: hot", "temperature", "not 'hot'"),
    "out of range": ("params.yaml", r"temperature: [\d.]+", "temperature: 4.5", "temperature", "not 4.5"),
    "not finite": ("params.yaml", r"kd_weight: [\d.]+", "kd_weight: .nan", "kd_weight", "not nan"),
    "neither": ("params.yaml", r"kd_weight: [\d.]+", "kd_weight: atuo", "kd_weight", "not 'atuo'"),
    "nested": ("params.yaml", r"phase1_share: [\d.]+", "phase1_share: 1.0", "curriculum.phase1_share", "not 1.0"),
    "no such choice": ("params.yaml", r"kd_order: \w+", "kd_order: both", "kd_order", "not 'both'"),
    "profile, misspelt": ("profiles/tiny.yaml", r"max_steps:", "max_stps:", "train.max_stps", "is not a known key"),
    "profile, ill-typed": ("profiles/tiny.yaml", r"k: \d+", "k: many", "teacher.k", "not 'many'"),
    "profile, empty": (
        "profiles/tiny.yaml",
        r"hidden_layers: \[2, 3, 4\]",
        "hidden_layers: []",
        "teacher.hidden_layers",
        "at least 1 item",
    ),
    "seed below 0": ("params.yaml", r"seed: \d+", "seed: -1", "seed", "not -1"),
    "seed beyond 32 bits": ("params.yaml", r"seed: \d+", f"seed: {2**32}", "seed", f"not {2**32}"),
    "a truth value": ("params.yaml", r"kd_weight: [\d.]+", "kd_weight: on", "kd_weight", "not true"),
    "profile, seed": ("profiles/tiny.yaml", r"seed: \d+", "seed: -1", "models.seed", "not -1"),
    "profile, truth value": ("profiles/tiny.yaml", r"k: \d+", "k: yes", "teacher.k", "not true"),
    "profile, huge": ("profiles/tiny.yaml", r"max_steps: \d+", f"max_steps: {10**30}", "train.max_steps", "less than"),
    "profile, samples": ("profiles/tiny.yaml", r"samples: \d+", "samples: 4", "evaluate.samples", "not 4"),
    "correction": (
        "profiles/tiny.yaml",
        r"teacher_correction: null",
        "teacher_correction: {}",
        "models.teacher_correction.steps",
        "is missing",
    ),
    "profile, fraction": ("profiles/tiny.yaml", r"max_steps: \d+", "max_steps: 1.5", "train.max_steps", "not 1.5"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_names_file_key_and_value(tree: Path, replace: Replace, mistake: str) -> None:
    file, pattern, new, key, said = MISTAKES[mistake]
    replace("params.yaml", r"profile: \w+", "profile: tiny")
    replace(file, pattern, new)
    with pytest.raises(ConfigError) as caught:
        load_params(tree)
    message = str(caught.value)
    assert str(tree / file) in message
    assert f"`{key}`" in message
    assert said in message
    assert caught.value.exit_code == 2


def test_every_wrong_key_of_both_files_is_named_with_what_was_meant(tree: Path, replace: Replace) -> None:
    replace("params.yaml", r"profile: \w+", "profile: tiny")
    replace("params.yaml", r"temperature: [\d.]+", "temprature: hot")
    replace("params.yaml", r"kd_weight: [\d.]+", "kd_weight: atuo")
    replace("profiles/tiny.yaml", r"- kind: python_docs", "- kind: python_doc")
    replace("profiles/tiny.yaml", r"vocabulary_size: 2560", "vocabulary_siz: 2560")
    replace("profiles/tiny.yaml", r"max_steps: \d+", "max_stps: 1.5")
    replace("profiles/tiny.yaml", r"validate_every: \d+", "validate_evry: 7")  # has a default: it is not missing
    with pytest.raises(ConfigError) as caught:
        load_params(tree)
    first, *rest = str(caught.value).splitlines()
    assert first == "6 things are wrong:"
    for part in (
        "`temprature` is not a known key; did you mean `temperature`?",
        "`kd_weight` input should be",
        "`corpus.sources.0`: no kind `python_doc`; did you mean `python_docs`?",
        "`models.teacher.tokenizer.vocabulary_siz` is not a known key; did you mean `vocabulary_size`?",
        "`train.max_stps` is not a known key; did you mean `max_steps`?",
        "`train.validate_evry` is not a known key; did you mean `validate_every`?",
    ):
        assert sum(part in line for line in rest) == 1, part


def test_a_key_in_the_wrong_place_is_told_where_it_belongs(tree: Path, replace: Replace) -> None:
    replace("params.yaml", r"profile: \w+", "profile: tiny\ntrain: {max_steps: 5}\nmax_steps: 5")
    replace("profiles/tiny.yaml", r"^windows:", "kd_weight: 0.5\nprocesses: 2\nwindows:")
    with pytest.raises(ConfigError) as caught:
        load_params(tree)
    said = [line.partition("yaml: ")[2] for line in str(caught.value).splitlines()[1:]]
    assert sorted(said) == [
        "`kd_weight` is not a known key; it is params.yaml's `kd_weight`",
        "`max_steps` is not a known key; it is the profile's `train.max_steps`",
        "`processes` is not a known key; it is `launch.processes`",
        "`train` is not a known key; it is the profile's `train`",
    ]


def test_a_key_of_another_kind_of_its_section_is_not_told_to_stay_where_it_is(tree: Path, replace: Replace) -> None:
    replace("params.yaml", r"profile: \w+", "profile: p100")
    replace("profiles/p100.yaml", r"repository: ", "paths: [texts]\n      repository: ")
    with pytest.raises(ConfigError) as caught:
        load_params(tree)
    assert "`corpus.sources.0.paths` is not a known key; change `corpus.sources.0.paths` in" in str(caught.value)


def test_a_profile_of_that_name_is_suggested(tree: Path, replace: Replace) -> None:
    replace("params.yaml", r"profile: \w+", "profile: p100.yaml")
    with pytest.raises(ConfigError, match=r"p100.yaml.yaml does not exist; .*; set `profile` .* such as `p100`"):
        load_params(tree)
    replace("params.yaml", r"profile: \S+", "profile: tinny")
    with pytest.raises(ConfigError, match=r"tinny.yaml does not exist; there are .*; set `profile` .* such as `tiny`"):
        load_params(tree)


def test_a_profile_that_git_does_not_know_is_named_in_a_temporary_workspace(
    tree: Path, replace: Replace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`dvc exp run --temp` and `--queue` copy what git knows, and set DVC_ROOT."""
    replace("params.yaml", r"profile: \w+", "profile: mine")
    (tmp_path / "main/profiles").mkdir(parents=True)
    shutil.copy(tree / "profiles/tiny.yaml", tmp_path / "main/profiles/mine.yaml")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "main"))
    with pytest.raises(ConfigError, match=r"mine.yaml is not here; .*; run: git add profiles/mine.yaml && git commit"):
        load_params(tree)


def test_outside_the_project_it_is_said_where_to_go(tree: Path) -> None:
    (tree / "dvc.yaml").touch()
    with pytest.raises(ConfigError, match=f"profiles is not the root of the project; .*; run: cd {tree}"):
        load_params(tree / "profiles")


def test_a_profile_of_ten_lines(tree: Path, replace: Replace) -> None:
    """What is left out has a default, and DVC is told of it; the sections stand there, by which DVC follows them."""
    replace("params.yaml", r"profile: \w+", "profile: mine")
    path = tree / "profiles/mine.yaml"
    path.write_text(
        "corpus:\n  sources: [{kind: files, paths: [texts/]}]\n"
        "models:\n  teacher: {kind: folder, path: my/teacher}\n  student: {kind: folder, path: my/student}\n"
        "windows:\nteacher: {hidden_layers: [2, 4], k: 7}\ntrain: {max_steps: 9}\nevaluate:\n"
    )
    profile = load_params(tree).profile
    assert (profile.teacher.k, profile.train.max_steps, profile.windows.teacher_max_length) == (7, 9, 256)
    assert "k" not in profile.teacher.left_out()
    assert profile.teacher.left_out()["tail_samples"] == 32
    assert profile.corpus.left_out()["sources"]["0"]["field"] == "text"
    assert profile.evaluate.left_out() == profile.evaluate.model_dump(mode="json")
    path.write_text(path.read_text().replace("windows:\n", ""))
    with pytest.raises(ConfigError, match="`windows` is missing"):
        load_params(tree)


def test_a_mistake_is_one_line_and_exit_code_2(
    tree: Path, replace: Replace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replace("params.yaml", r"temperature: [\d.]+", "temperature: hot")
    monkeypatch.chdir(tree)
    monkeypatch.setattr(sys, "argv", ["moe-distill", "plan"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    said = capsys.readouterr().err
    assert left.value.code == 2
    assert said.startswith("error: params.yaml: `temperature`")
    assert said.count("\n") == 1


@pytest.mark.parametrize("written", ["1e-05", "'0.00001'", "1.0e-5"])
def test_a_number_that_yaml_reads_as_text_is_a_number(tree: Path, replace: Replace, written: str) -> None:
    """YAML 1.1 takes 1e-05, as DVC writes it, for a string."""
    replace("params.yaml", r"profile: \w+", "profile: tiny")
    replace("profiles/tiny.yaml", r"router_learning_rate: \S+", f"router_learning_rate: {written}")
    assert load_params(tree).profile.train.router_learning_rate == 1e-5


def test_micro_batches_must_divide_the_batch(tree: Path, replace: Replace) -> None:
    replace("params.yaml", r"profile: \w+", "profile: tiny")
    replace("profiles/tiny.yaml", r"micro_batch_windows: \d+", "micro_batch_windows: 3")
    with pytest.raises(ConfigError, match=r"`train`.*multiple of micro_batch_windows"):
        load_params(tree)


def test_groups_may_be_merged_into_others_as_dvc_has_it(tree: Path, replace: Replace) -> None:
    before = load_params(tree)
    steps = before.profile.train.max_steps
    replace("profiles/test.yaml", r"  max_steps: \d+\n", f"  <<: [{{max_steps: {steps}}}, {{max_steps: 1}}]\n")
    assert load_params(tree) == before


def test_a_profile_that_is_not_there_is_named(tree: Path, replace: Replace) -> None:
    replace("params.yaml", r"profile: \w+", "profile: none")
    with pytest.raises(ConfigError, match=r"none\.yaml does not exist.*set `profile`"):
        load_params(tree)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a: [1", "is not YAML"),
        (b"", "must hold keys"),
        (b"- 1", "must hold keys"),
        (b"caf\xe9: 1", "is not YAML"),
        (b"seed: 2024-99-99", "is not YAML"),
        (b"seed: 1\nseed: 2\n", r"is not YAML; the key `seed` stands twice"),
        (b"losses:\n  feature: 1\n  feature: 1\n", r"the key `feature` stands twice .*line 3"),
        (b"seed: " + b"9" * 5000, "is not YAML"),
        (b"- " * 3000, "is not YAML"),
    ],
)
def test_what_is_not_a_mapping_is_refused(tree: Path, content: bytes, said: str) -> None:
    (tree / "params.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=said) as caught:
        load_params(tree)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path, **_options: object) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", refused)
    with pytest.raises(ConfigError, match=r"params\.yaml cannot be read; Permission denied"):
        load_params(tree)


@pytest.mark.parametrize("name", ["", "a|b", "a\nb", "-", "a" * 101, "../up"])
def test_a_name_that_no_table_can_hold_is_refused(name: str) -> None:
    source = {"kind": "files", "name": name, "paths": ["texts"], "field": "text", "weight": 1.0, "max_documents": None}
    with pytest.raises(ValidationError, match="name"):
        Corpus.model_validate({"sources": [source], "validation_fraction": 0.5})
    Corpus.model_validate({"sources": [source | {"name": "日本 a.b-c_d"}], "validation_fraction": 0.5})


def test_parameters_are_immutable(tree: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_params(tree).experiment.seed = 1


def test_r23_temperature_is_a_top_level_parameter_and_in_no_profile() -> None:
    assert "temperature" in ExperimentParams.model_fields
    assert "temperature" not in str(Profile.model_json_schema())


@pytest.mark.parametrize("stage", ["corpus", "models", "tokenize", "teacher"])
def test_r23_no_stage_before_training_depends_on_what_one_studies(stage: str) -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    found = {name: each for name, each in stages.items() if name.startswith(stage)}
    assert found
    for each in (one.get("do", one) for one in found.values()):
        named = [param for param in each.get("params", []) if isinstance(param, str)]
        assert "temperature" not in named
        assert "params.yaml" not in each.get("deps", [])


MISFITS = {  # pattern, what somebody writes, what is said; the first match in profiles/tiny.yaml is the teacher's
    "heads": (r"hidden_size: \d+", "hidden_size: 150", "hidden_size must be a multiple of 2 * heads"),
    "rotary": (r"hidden_size: \d+", "hidden_size: 164", "hidden_size must be a multiple of 2 * heads"),
    "groups": (r"key_value_heads: \d+", "key_value_heads: 3", "heads must be a multiple of key_value_heads"),
    "experts": (r"experts_per_token: \d+", "experts_per_token: 5", "experts_per_token must not exceed num_experts"),
    "depth": (r"hidden_layers: \[2, 3, 4\]", "hidden_layers: [2, 5]", "beyond models.teacher.layers, 4"),
    "order": (r"hidden_layers: \[2, 3, 4\]", "hidden_layers: [4, 2]", "`teacher`: hidden_layers must ascend"),
    "twice": (r"hidden_layers: \[2, 3, 4\]", "hidden_layers: [2, 2, 4]", "each named once"),
    "run": (r"teacher_max_length: \d+", "teacher_max_length: 64", "teacher.hidden_run must be below"),
    "k": (r"k: \d+", "k: 2560", "teacher.k must be below models.teacher.tokenizer.vocabulary_size"),
    "teacher windows": (r"teacher_max_length: \d+", "teacher_max_length: 129", "not exceed models.teacher.max_length"),
    "student windows": (r"student_max_length: \d+", "student_max_length: 193", "not exceed models.student.max_length"),
    "samples": (r"sample_tokens: \d+", "sample_tokens: 192", "must be below windows.student_max_length"),
    "correction": (
        r"teacher_correction: null",
        "teacher_correction: {steps: 1, learning_rate: 1.0e-4, rank: 4, train_experts: true, train_router: true, "
        "batch_windows: 4, micro_batch_windows: 3, gradient_checkpointing: true, validation_windows: 1, "
        "checkpoint_every: 1}",
        "`models.teacher_correction`: batch_windows must be a multiple of micro_batch_windows",
    ),
    "processes": (r"processes: \d+", "processes: 2", "2 processes cannot share a step of 1 micro-batches evenly"),
    "micro batch": (r"micro_batch_windows: \d+", "micro_batch_windows: 32", "multiple of micro_batch_windows"),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_keys_that_do_not_fit_each_other_are_refused_at_once(tree: Path, replace: Replace, misfit: str) -> None:
    pattern, new, said = MISFITS[misfit]
    replace("params.yaml", r"profile: \w+", "profile: tiny")
    replace("profiles/tiny.yaml", pattern, new)
    with pytest.raises(ConfigError) as caught:
        load_params(tree)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(tree)) * 2
    assert str(caught.value).endswith(f"change it in {tree / 'profiles/tiny.yaml'}")


def without_states(tree: Path, replace: Replace, *terms: str) -> None:
    """Profile `tiny` keeps no states, and of the weights of losses only those of `terms` are above 0."""
    replace("params.yaml", r"profile: \w+", "profile: tiny")
    replace("profiles/tiny.yaml", r"hidden_fraction: [\d.]+", "hidden_fraction: 0.0")
    for name in yaml.safe_load((tree / "params.yaml").read_text())["losses"]:
        replace("params.yaml", rf"{name}: [\d.]+", f"{name}: {0.1 if name in terms else 0.0}")


@pytest.mark.parametrize("term", HIDDEN_TERMS + ROUTER_TERMS)
def test_a_term_of_phase_2_is_refused_where_no_states_are_kept(tree: Path, replace: Replace, term: str) -> None:
    without_states(tree, replace, term)
    with pytest.raises(ConfigError, match=rf"`teacher\.hidden_fraction` is 0.*`losses\.{term}`"):
        load_params(tree)


def test_kd_alone_needs_no_states(tree: Path, replace: Replace) -> None:
    without_states(tree, replace)
    params = load_params(tree)
    assert params.experiment.losses.terms_of_states() == []
    assert params.profile.teacher.hidden_fraction == 0.0
