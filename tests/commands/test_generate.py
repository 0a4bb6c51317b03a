"""`moe-distill generate`, against the model asked token by token without a cache."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from moe_distill.commands.generate import generate
from moe_distill.errors import ConfigError, DataError
from moe_distill.models.pretrained import load_causal_lm
from moe_distill.models.tokenizer_files import load_tokenizer
from tests.alignment.toy import id_of, sentencepiece
from tests.chain import Chain

TEXT = "The value of 12"


@pytest.fixture
def student(chain: Chain) -> Path:
    return chain.folder / "models/student_init"


def slowly(student: Path, text: str, n_tokens: int) -> str:
    """The likeliest token again and again, everything read anew each time, after the prefix token 0."""
    model: Any = AutoModelForCausalLM.from_pretrained(student)
    tokenizer = load_tokenizer(student)
    ids = [0, *tokenizer.encode(text, add_special_tokens=False).ids]
    for _ in range(n_tokens):
        token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
        if token == 0:
            break
        ids.append(token)
    return tokenizer.decode(ids[1:])


def test_pieces_are_the_text_and_the_likeliest_tokens(student: Path) -> None:
    pieces = list(generate(TEXT, student, 12, temperature=0.0, seed=0))
    assert pieces[0] == TEXT
    assert len(pieces) > 2, "it streams"
    assert "".join(pieces).rstrip("\ufffd") == slowly(student, TEXT, 12).rstrip("\ufffd")


def test_the_model_reads_the_prefix_token_first(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An untrained model may well say the same without it."""
    read = list[list[int]]()

    def loaded(folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
        model: Any = load_causal_lm(folder, dtype, device)
        model.register_forward_pre_hook(
            lambda _, __, inputs: read.append(inputs["input_ids"][0].tolist()), with_kwargs=True
        )
        return model

    monkeypatch.setattr("moe_distill.commands.generate.load_causal_lm", loaded)
    list(generate(TEXT, student, 3, 0.0, 0))
    assert read[0] == [0, *load_tokenizer(student).encode(TEXT, add_special_tokens=False).ids]
    assert [len(each) for each in read[1:]] == [1, 1], "what was read is kept"


def test_half_a_character_stands_as_such_and_what_follows_is_told(
    student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model may write tokens of single bytes in any order, ids without a token, and special tokens."""
    tokenizer = sentencepiece("prepend")
    said = iter([id_of(tokenizer, token) for token in ("<0x68>", "<0xB2>", "</s>", "<0xC3>", "<0xA9>", "w")] + [400])
    monkeypatch.setattr("moe_distill.commands.generate.load_tokenizer", lambda _: tokenizer)
    monkeypatch.setattr("moe_distill.commands.generate._chosen", lambda *_: next(said))
    assert list(generate("a", student, 7, 0.0, 0)) == ["a", "h", "\ufffd", "\u00e9", "w"]


def test_draws_follow_the_seed_and_differ_with_the_temperature(student: Path) -> None:
    def told(temperature: float, seed: int) -> str:
        return "".join(generate(TEXT, student, 20, temperature, seed))

    assert told(1.0, 3) == told(1.0, 3) != told(1.0, 4)
    assert told(1e-6, 3) == told(0.0, 0)


def test_it_ends_at_the_end_of_text_and_where_the_model_ends(chain: Chain, tmp_path: Path) -> None:
    student = chain.copy(tmp_path / "chain").folder / "models/student_init"
    first = list(generate(TEXT, student, 1, 0.0, 0))[1]
    config = json.loads((student / "config.json").read_text())
    tokenizer = load_tokenizer(student)
    n_prompt = 1 + len(tokenizer.encode(TEXT, add_special_tokens=False).ids)
    (token,) = tokenizer.encode(first, add_special_tokens=False).ids
    (student / "config.json").write_text(json.dumps(config | {"eos_token_id": [token, 0]}))
    assert list(generate(TEXT, student, 50, 0.0, 0)) == [TEXT]
    (student / "config.json").write_text(json.dumps(config | {"max_position_embeddings": n_prompt + 2}))
    assert "".join(generate(TEXT, student, 50, 0.0, 0)).rstrip("\ufffd") == slowly(student, TEXT, 2).rstrip("\ufffd")
    (student / "config.json").write_text(json.dumps(config | {"max_position_embeddings": n_prompt}))
    with pytest.raises(DataError, match=f"the text has {n_prompt} tokens, .* reads at most {n_prompt}; give a shorter"):
        list(generate(TEXT, student, 50, 0.0, 0))


@pytest.mark.parametrize(
    ("options", "told"),
    [((0, 0.0, 0), "--tokens is 0"), ((5, -1.0, 0), "--temperature is -1.0"), ((5, float("nan"), 0), "is nan")],
)
def test_an_option_out_of_range_is_named(student: Path, options: tuple[int, float, int], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        list(generate(TEXT, student, *options))


def test_a_text_that_is_not_utf8_is_told(student: Path) -> None:
    with pytest.raises(ConfigError, match="the text is not UTF-8; convert it"):
        list(generate(b"caf\xe9".decode("utf-8", "surrogateescape"), student, 5, 0.0, 0))


def test_no_model_yet_names_the_command_that_makes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="models/student does not exist; run it in the folder of the project"):
        list(generate(TEXT, Path("models/student"), 5, 0.0, 0))
    Path("params.yaml").touch()
    Path("models/student_kd").mkdir(parents=True)
    for folder, told in (
        ("models/student", "models/student does not exist; run: dvc repro student"),
        ("models/student_kd", "models/student_kd holds no model; run: dvc repro train_kd"),
        ("nowhere", "nowhere does not exist; give the folder of a model, as models/student"),
    ):
        with pytest.raises(DataError) as caught:
            list(generate(TEXT, Path(folder), 5, 0.0, 0))
        assert str(caught.value) == told
