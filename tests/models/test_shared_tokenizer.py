"""The tokenizer that others load: the ids of the windows, after the token that every window began with."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from moe_distill.models.auto_tokenizer import TEXTS
from moe_distill.models.shared_tokenizer import begin_with, share_tokenizer
from moe_distill.models.tokenizer_files import load_tokenizer
from moe_distill.shards.window_store import STUDENT_WINDOWS, TEACHER_WINDOWS, WindowStore
from tests.assets import real_tokenizer
from tests.chain import Chain

from .test_auto_tokenizer import END, small, write

BEGIN = "<|begin|>"
PROCESSORS = {
    "none": None,
    "offsets": processors.ByteLevel(trim_offsets=False),
    "begins with another": processors.TemplateProcessing(f"{END} $A", None, [(END, 0)]),
    "both": processors.Sequence([processors.ByteLevel(), processors.TemplateProcessing(f"$A {END}", None, [(END, 0)])]),
}


def shared(folder: Path, tokenizer: Tokenizer, model_type: str = "llama", **settings: object) -> Path:
    """The shared copy of a tokenizer whose config.json names its last id as the prefix token."""
    source, output = folder / "source", folder / "shared"
    source.mkdir()
    output.mkdir()
    write(source, tokenizer, model_type, **settings)
    config = {"model_type": model_type, "vocab_size": tokenizer.get_vocab_size()}
    config["bos_token_id"] = tokenizer.get_vocab_size() - 1
    for each in (source, output):
        (each / "config.json").write_text(json.dumps(config))
    assert share_tokenizer(source, output) == "AutoTokenizer"
    return output


def settings_of(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / "tokenizer_config.json").read_text())
    return found


def spans(store: WindowStore) -> list[tuple[int, int, int]]:
    """Document, first byte and end of each window."""
    columns = [torch.cat(list(store.reader.columns(name))) for name in ("documents", "byte_starts", "byte_ends")]
    return [(int(document), int(start), int(end)) for document, start, end in zip(*columns, strict=True)]


def test_ids_are_those_of_the_windows_after_their_prefix(chain: Chain, tmp_path: Path) -> None:
    """Text is encoded a teacher window at a time; the student's windows in it have its ids, one after the other."""
    source, windows = chain.folder / "models/student_init", chain.folder / "data/windows"
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    assert share_tokenizer(source, tmp_path) == "AutoTokenizer"
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    store = WindowStore(windows / "student/validation", STUDENT_WINDOWS)
    ids = dict[tuple[int, int, int], list[int]]()
    of_the_teacher = spans(WindowStore(windows / "teacher/validation", TEACHER_WINDOWS))
    for number, (document, start, _) in enumerate(spans(store)):
        around = next(each for each in of_the_teacher if each[0] == document and each[1] <= start < each[2])
        ids[around] = ids.get(around, []) + store.tokens("token_ids", number).tolist()
    for (_, start, end), expected in ids.items():
        text = load_tokenizer(source).decode(expected, skip_special_tokens=False)
        assert len(text.encode()) == end - start
        assert loaded(text)["input_ids"] == [store.prefix_id, *expected]
    assert len(ids) >= 10


@pytest.mark.parametrize("name", PROCESSORS)
def test_one_prefix_token_and_nothing_else_whatever_the_post_processor_did(tmp_path: Path, name: str) -> None:
    tokenizer = small()
    tokenizer.add_special_tokens([BEGIN])
    if PROCESSORS[name] is not None:
        tokenizer.post_processor = PROCESSORS[name]
    folder = shared(tmp_path, tokenizer, eos_token=END, bos_token=END, add_eos_token=True)
    prefix = int(tokenizer.token_to_id(BEGIN) or 0)
    for reader in (AutoTokenizer, PreTrainedTokenizerFast):
        loaded = reader.from_pretrained(folder)
        for text in TEXTS:
            expected = [prefix, *tokenizer.encode(text, add_special_tokens=False).ids]
            assert loaded(text)["input_ids"] == expected
            assert loaded(text, add_special_tokens=False)["input_ids"] == expected[1:]
            assert loaded.decode(expected, skip_special_tokens=True) == tokenizer.decode(expected)
        assert loaded.bos_token_id == prefix


def test_what_transformers_4_57_needs_stands_there(tmp_path: Path) -> None:
    """It has no TokenizersBackend, and gives token types that a model refuses unless told not to."""
    tokenizer = small()
    tokenizer.add_special_tokens([BEGIN])
    old = {"tokenizer_class": "TokenizersBackend", "backend": "tokenizers", "chat_template": "{{ x }}"}
    folder = shared(tmp_path, tokenizer, **old)
    settings = settings_of(folder)
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert settings["model_input_names"] == ["input_ids", "attention_mask"]
    assert settings["clean_up_tokenization_spaces"] is False
    assert settings["bos_token"] == BEGIN
    assert settings["add_bos_token"] is True
    assert settings["chat_template"] == "{{ x }}"
    assert "backend" not in settings


def test_a_prefix_that_is_not_special_is_put_first_without_being_cut_out_of_texts(tmp_path: Path) -> None:
    tokenizer = small()
    tokenizer.add_tokens([AddedToken("the", special=False, normalized=False)])
    folder = shared(tmp_path, tokenizer, eos_token=END)
    assert "bos_token" not in settings_of(folder)
    loaded = AutoTokenizer.from_pretrained(folder)
    assert loaded("x")["input_ids"][0] == tokenizer.token_to_id("the")
    assert loaded("other")["input_ids"][1:] == tokenizer.encode("other", add_special_tokens=False).ids


def test_the_trained_folder_keeps_its_tokenizer(tmp_path: Path) -> None:
    tokenizer = small()
    tokenizer.add_special_tokens([BEGIN])
    shared(tmp_path, tokenizer)
    assert Tokenizer.from_file(str(tmp_path / "source/tokenizer.json")).to_str() == tokenizer.to_str()


def test_older_files_that_would_overrule_tokenizer_json_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "shared").mkdir()
    write(tmp_path / "source", small(), "llama")
    (tmp_path / "source/special_tokens_map.json").write_text(json.dumps({"bos_token": "a"}))
    (tmp_path / "source/merges.txt").write_text("")
    (tmp_path / "shared/config.json").write_bytes((tmp_path / "source/config.json").read_bytes())
    share_tokenizer(tmp_path / "source", tmp_path / "shared")
    names = {path.name for path in (tmp_path / "shared").iterdir()}
    assert names == {"config.json", "tokenizer.json", "tokenizer_config.json", "merges.txt"}


def test_a_type_whose_class_transformers_forces_is_told_with_the_class_that_works(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("source", "shared"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, small(), "qwen2")
    assert share_tokenizer(tmp_path / "source", tmp_path / "shared") == "PreTrainedTokenizerFast"
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("student: warning: AutoTokenizer")
    assert "load the tokenizer with PreTrainedTokenizerFast" in line


@pytest.mark.parametrize("name", ["smollm2", "qwen3"])
def test_tokenizers_of_real_models_begin_with_any_special_token(name: str) -> None:
    tokenizer = real_tokenizer(name)
    prefix = next(number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special)
    begun = begin_with(tokenizer, prefix)
    for text in TEXTS:
        assert begun.encode(text).ids == [prefix, *tokenizer.encode(text, add_special_tokens=False).ids]
