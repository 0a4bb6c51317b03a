"""A student's folder: AutoTokenizer gives the ids of its tokenizer.json, or a line says that it does not."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

from moe_distill.models.auto_tokenizer import TEXTS, match_auto_tokenizer
from tests.assets import real_tokenizer

END = "<|endoftext|>"


def small() -> Tokenizer:
    """Byte-level BPE that splits digits off one by one, as SmolLM's."""
    made = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    made.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(list(TEXTS) * 3, trainer)
    return made


def write(folder: Path, tokenizer: Tokenizer, model_type: str, **settings: object) -> Path:
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"model_type": model_type, "vocab_size": tokenizer.get_vocab_size(), "bos_token_id": 0}
    (folder / "config.json").write_text(json.dumps(config))
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def disagreements(folder: Path) -> list[str]:
    """The texts of which AutoTokenizer gives other ids than tokenizer.json."""
    auto, file = AutoTokenizer.from_pretrained(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = [*TEXTS, f"a{END} b", "\n        1\n   22"]
    return [
        text
        for text in texts
        if auto(text, add_special_tokens=False)["input_ids"] != file.encode(text, add_special_tokens=False).ids
    ]


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma", "granite"])
@pytest.mark.parametrize(
    "name", ["Qwen2Tokenizer", "T5Tokenizer", "GemmaTokenizer", "CodeLlamaTokenizer", "BertTokenizer"]
)
def test_a_class_that_gives_other_ids_is_replaced(
    tmp_path: Path, name: str, model_type: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path, small(), model_type, tokenizer_class=name, eos_token=END, chat_template="{{ x }}")
    tokens = (folder / "tokenizer.json").read_bytes()
    match_auto_tokenizer(folder)
    assert disagreements(folder) == []
    assert (folder / "tokenizer.json").read_bytes() == tokens
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings["eos_token"] == END
    assert settings["chat_template"] == "{{ x }}"
    if settings["tokenizer_class"] != name:
        assert "now names PreTrainedTokenizerFast: with what it said, AutoTokenizer" in capsys.readouterr().out


def test_some_of_these_classes_do_give_other_ids(tmp_path: Path) -> None:
    assert disagreements(write(tmp_path, small(), "llama", tokenizer_class="Qwen2Tokenizer"))


def test_a_model_type_whose_class_cannot_be_replaced_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path, small(), "qwen2", tokenizer_class="PreTrainedTokenizerFast")
    before = (folder / "tokenizer_config.json").read_bytes()
    match_auto_tokenizer(folder)
    assert (folder / "tokenizer_config.json").read_bytes() == before
    (line,) = capsys.readouterr().out.splitlines()
    assert "AutoTokenizer (Qwen2Tokenizer) reads" in line
    assert "trained on the ids of tokenizer.json, which PreTrainedTokenizerFast.from_pretrained gives" in line
    (folder / "tokenizer_config.json").unlink()
    match_auto_tokenizer(folder)
    assert not (folder / "tokenizer_config.json").exists()


def test_a_real_tokenizer_of_its_own_class_keeps_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path, real_tokenizer("qwen3"), "qwen2", tokenizer_class="Qwen2Tokenizer")
    before = (folder / "tokenizer_config.json").read_bytes()
    match_auto_tokenizer(folder)
    assert "warning" not in capsys.readouterr().out
    assert disagreements(folder) == []
    assert (folder / "tokenizer_config.json").read_bytes() == before


def test_blanks_before_a_digit_keep_the_ids_of_smollm2(tmp_path: Path) -> None:
    """Its own file splits digits off first; the class that its tokenizer_config.json names does not."""
    folder = write(tmp_path, real_tokenizer("smollm2"), "llama", tokenizer_class="GPT2Tokenizer")
    assert disagreements(folder) == ["\n        1\n   22"]
    match_auto_tokenizer(folder)
    assert disagreements(folder) == []


def test_what_is_put_before_a_text_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = small()
    folder = write(tmp_path, tokenizer, "llama", tokenizer_class="PreTrainedTokenizerFast")
    match_auto_tokenizer(folder)
    assert "AutoTokenizer reads 'x' as x; in training every window begins with '<|endoftext|>' (id 0)" in (
        capsys.readouterr().out
    )
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{END} $A", special_tokens=[(END, 0)])
    match_auto_tokenizer(write(tmp_path, tokenizer, "llama", tokenizer_class="PreTrainedTokenizerFast"))
    assert capsys.readouterr().out == ""


def test_tokens_that_only_the_settings_add_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "bos_token": END}
    match_auto_tokenizer(write(tmp_path, small(), "llama", **settings))
    rows = small().get_vocab_size()
    assert f"so that AutoTokenizer has {rows + 1} ids; the model has {rows} rows" in capsys.readouterr().out
