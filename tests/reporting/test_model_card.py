"""The student's card: metadata that the hub's own library reads back, and usage that runs as printed."""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from huggingface_hub import constants as hub_constants

from moe_distill.config.corpus_keys import Hub
from moe_distill.config.model_keys import FolderModel, HubModel, TinyStudent, TinyTeacher
from moe_distill.config.params import Params
from moe_distill.models.shared_model import share_model
from moe_distill.reporting.model_card import FIGURES, write_model_card
from moe_distill.utils.hub_commits import record_commit
from tests.chain import Chain
from tests.correction.conftest import PARAMS as CORRECTION

COMMIT = "5" * 40
FIGURES_OF_A_RUN = {
    "teacher_bits_per_byte": 1.7878,
    "student_bits_per_byte": 1.8971234567,
    "lm_only_bits_per_byte": 2.0651,
    "student_init_bits_per_byte": 3.69,
    "student_perplexity": 11.5,
    "top1_agreement": 0.5,
    "student_parameters": 807360.0,
    "teacher_parameters": 2461920.0,
    "teacher_experts": 4.0,
    "student_steps": 24.0,
    "student_stopped_early": 1.0,
}
SOURCE = Hub(
    kind="hub",
    name="wiki",
    repository="owner/texts",
    revision="0123",
    subset="raw",
    split="train",
    field="text",
    weight=1.0,
    max_documents=5,
)


def changed(
    params: Params,
    student: HubModel | FolderModel | TinyStudent | None = None,
    teacher: HubModel | FolderModel | TinyTeacher | None = None,
    sources: list[Hub] | None = None,
) -> Params:
    profile = params.profile
    models = {name: each for name, each in (("student", student), ("teacher", teacher)) if each is not None}
    corpus = profile.corpus if sources is None else profile.corpus.model_copy(update={"sources": sources})
    update = {"models": profile.models.model_copy(update=models), "corpus": corpus}
    return params.model_copy(update={"profile": profile.model_copy(update=update)})


def card_of(params: Params, folder: Path, figures: dict[str, float] = FIGURES_OF_A_RUN) -> Any:
    write_model_card(params, figures, "AutoTokenizer", folder)
    return ModelCard.load(folder / "README.md")


def test_a_run_without_a_baseline_has_a_card(chain: Chain, tmp_path: Path) -> None:
    figures = {name: value for name, value in FIGURES_OF_A_RUN.items() if not name.startswith("lm_only")}
    text = card_of(chain.params, tmp_path, figures).text
    assert "without a teacher" not in text
    assert "| **this model** | **1.8971** |\n| the same model before any training | 3.6900 |\n" in text


def test_card_of_a_tiny_student_says_what_is_known_and_no_more(chain: Chain, tmp_path: Path) -> None:
    card = card_of(chain.params, tmp_path)
    found = card.data.to_dict()
    assert (found["library_name"], found["pipeline_tag"]) == ("transformers", "text-generation")
    assert found["language"] == ["en"]
    assert not {"license", "base_model", "base_model_relation", "datasets"} & set(found)
    results = {each.metric_type: each for each in card.data.eval_results}
    assert set(results) == {kind for kind, _ in FIGURES.values()}
    assert results["bits_per_byte"].metric_value == 1.89712
    assert results["bits_per_byte"].dataset_name == "held-out documents of python_docs"
    assert "distilled from a Mixture-of-Experts teacher of" in card.text
    assert "24 optimizer steps of 8 windows, stopped early (at most 20)" in card.text
    assert "tuned on the training text" not in card.text


@pytest.mark.parametrize(
    ("line", "languages"),
    [
        ("language: no", ["en", "no"]),
        ("language: [no, nn, de]", ["de", "en", "nn", "no"]),
        ("language: 'no'", ["en", "no"]),
        ("language:", ["en"]),
        ("license: mit", ["en"]),
    ],
)
def test_norwegian_is_a_language(chain: Chain, tmp_path: Path, line: str, languages: list[str]) -> None:
    """YAML reads `no` as false: the card said False, or nothing. The text is English."""
    (tmp_path / "README.md").write_text(f"---\n{line}\n---\n")
    (tmp_path / "card").mkdir()
    student = FolderModel(kind="folder", path=str(tmp_path))
    assert card_of(changed(chain.params, student), tmp_path / "card").data.language == languages


def test_card_of_hub_models_names_base_licence_languages_and_data(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From their cards in the hub's cache, which `models` has filled; nothing is asked over the network.

    A branch is what it was at its first download.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    record_commit("model", "owner/large", "main", COMMIT)
    record_commit("dataset", "owner/texts", "main", COMMIT)
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for name, commit, front in (
        ("small", "0123abc", "license: apache-2.0\nlanguage: de"),
        ("large", COMMIT, "license: other\nlicense_name: open-x"),
    ):
        snapshot = tmp_path / f"hub/models--owner--{name}/snapshots/{commit}"
        snapshot.mkdir(parents=True)
        (snapshot / "README.md").write_text(f"---\n{front}\n---\n")
    student = HubModel(kind="hub", repository="owner/small", revision="0123abc")
    teacher = HubModel(kind="hub", repository="owner/large", revision="main", allow_unpinned=True)
    monkeypatch.setattr(
        "moe_distill.models.source_card.try_to_load_from_cache",
        lambda repository, name, revision: str(
            tmp_path / f"hub/models--{repository.replace('/', '--')}/snapshots/{revision}/{name}"
        ),
    )
    texts = SOURCE.model_copy(update={"revision": "main", "allow_unpinned": True})
    card = card_of(changed(chain.params, student, teacher, [texts]), tmp_path)
    found = card.data.to_dict()
    assert (found["base_model"], found["base_model_relation"]) == ("owner/small", "finetune")
    assert (found["license"], found["language"], found["datasets"]) == ("apache-2.0", ["de"], ["owner/texts"])
    assert found["model-index"][0]["name"] == "small-distilled"
    result = card.data.eval_results[0]
    assert (result.dataset_type, result.dataset_config, result.dataset_split) == ("owner/texts", "raw", "train")
    assert result.dataset_revision == COMMIT
    assert f"owner/large](https://huggingface.co/owner/large) at revision `{COMMIT}`; its licence: open-x." in card.text


def test_card_of_a_local_student_tells_its_name_and_not_its_path(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    (tmp_path / "somewhere/mine").mkdir(parents=True)
    (tmp_path / "somewhere/mine/README.md").write_text("---\nlicense: mit\n---\nMine.\n")
    card = card_of(changed(chain.params, FolderModel(kind="folder", path="somewhere/mine")), tmp_path)
    assert card.data.license == "mit"
    assert "a local model, `mine`; its licence: mit." in card.text
    assert "somewhere" not in card.text
    (tmp_path / "somewhere/mine/README.md").write_text("---\nlicense: [\n---\n")
    card = card_of(changed(chain.params, FolderModel(kind="folder", path="somewhere/mine")), tmp_path)
    assert card.data.license is None, "a card that cannot be read says nothing"


def test_a_result_that_is_not_defined_is_left_out(chain: Chain, tmp_path: Path) -> None:
    figures = {name: value for name, value in FIGURES_OF_A_RUN.items() if name != "student_perplexity"}
    card = card_of(chain.params, tmp_path, figures)
    assert [each.metric_type for each in card.data.eval_results] == ["bits_per_byte", "top1_agreement"]
    assert "perplexity" not in card.text


def test_a_run_without_a_baseline_has_no_row_of_it(chain: Chain, tmp_path: Path) -> None:
    figures = {name: value for name, value in FIGURES_OF_A_RUN.items() if name != "lm_only_bits_per_byte"}
    assert "without a teacher" in card_of(chain.params, tmp_path).text
    text = card_of(chain.params, tmp_path, figures).text
    assert "without a teacher" not in text
    assert "| **1.8971** |\n| the same model before any training | 3.6900 |" in text


def test_a_corrected_teacher_is_told(chain: Chain, tmp_path: Path) -> None:
    values = chain.params.model_dump()
    values["profile"]["models"]["teacher_correction"] = CORRECTION.model_dump()
    assert "and was tuned on the training text first" in card_of(Params.model_validate(values), tmp_path).text


def test_usage_runs_as_printed(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the project's root, and what it prints begins with the prompt, without the prefix token."""
    folder = tmp_path / "models/student"
    folder.mkdir(parents=True)
    tokenizer_class = share_model(chain.folder / "models/student_init", folder)
    write_model_card(chain.params, FIGURES_OF_A_RUN, tokenizer_class, folder)
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    printed = io.StringIO()
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(printed):
        exec(code, names)
    assert printed.getvalue().startswith("The")
    assert len(printed.getvalue()) > 40
    (ids,) = names["inputs"]["input_ids"].tolist()
    assert ids[0] == 0
