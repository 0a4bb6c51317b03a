"""Windows of both tokenizers: every byte once, both limits kept, aligned by bytes."""

import json
import unicodedata
from collections import defaultdict
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers

from moe_distill.alignment.encode import Encoder
from moe_distill.alignment.tokenize import tokenize_split
from moe_distill.alignment.window_limits import Cut, WindowLimits
from moe_distill.corpus.documents import hash_fraction
from moe_distill.errors import DataError
from moe_distill.shards.provenance import windows_fingerprint
from moe_distill.shards.window_store import STUDENT_WINDOWS, TEACHER_WINDOWS, NextToken, WindowStore

from .toy import TEXT, Split, Window, byte_level, document, encoder, make_split, sentencepiece, token_ends

TEACHER = encoder(byte_level(600), "teacher")
STUDENT = encoder(byte_level(320, digits=True), "student")
WORDS = [
    "the quick ",
    "brown",
    " fox",
    "  ",
    "\n",
    "2024",
    "naïve ",
    "東京",
    "🙂",
    "👩‍👩‍👧‍👦",
    "e\u0323\u0301",
    "\u0627\u0644",
    "\x04",
    "q",
]
TEXTS = st.lists(
    st.lists(st.sampled_from(WORDS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=5), max_size=15).map(
        lambda parts: unicodedata.normalize("NFC", "".join(parts))
    ),
    min_size=1,
    max_size=4,
)


def check(split: Split, texts: list[str], teacher: Encoder, student: Encoder, limits: tuple[int, int]) -> None:
    """All that holds for any documents and any pair of tokenizers."""
    rejected = [{number for number, text in enumerate(texts) if _is_lost(owner, text)} for owner in (teacher, student)]
    for windows, owner, limit, lost in zip(
        (split.teacher, split.student),
        (teacher, student),
        limits,
        (rejected[0], rejected[0] | rejected[1]),
        strict=True,
    ):
        covered = defaultdict(list)
        for window in windows:
            source = texts[window.document].encode()[window.start : window.stop]
            source.decode()  # valid UTF-8
            assert b"".join(owner.token_bytes.table[token] or b"?" for token in window.ids) == source
            assert 0 < len(window.ids) < limit  # the prefix token takes one place
            covered[window.document].append((window.start, window.stop))
        for number, text in enumerate(texts):
            spans = covered.pop(number, [])
            expected = b"" if number in lost else text.encode()
            assert b"".join(text.encode()[start:stop] for start, stop in spans) == expected
            assert all(before[1] == after[0] for before, after in pairwise(spans))
            assert not spans or (spans[0][0], spans[-1][1]) == (0, len(expected))
        assert not covered
    assert len(split.counts.skipped) == len(rejected[0]) + len(rejected[1] - rejected[0])
    check_alignment(split, teacher, student)


def check_alignment(split: Split, teacher: Encoder, student: Encoder) -> None:
    """Teacher rows, last tokens and relations against a search over every teacher position."""
    position = {}  # (document, byte consumed) -> (row, end and id of the next teacher token)
    last_of = {}  # (document, byte consumed) -> (row and id of the teacher token before it, bytes of it)
    teacher_windows = []
    for window in split.teacher:
        ends = token_ends(window, teacher)
        starts = [window.start, *ends[:-1]]
        teacher_windows.append((window.document, window.start, window.stop))
        for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
            position[window.document, start] = (window.first_row + number, end, window.ids[number])
            for read in range(start + 1, end + (end < window.stop)):  # where the window ends, another begins
                last_of[window.document, read] = (window.first_row + number, window.ids[number], read - start)
    aligned = one_to_one = longer = shorter_context = 0
    teacher_starts = {(document, start) for document, start, _ in teacher_windows}
    for window in split.student:
        assert any(
            document == window.document and start <= window.start and window.stop <= stop
            for document, start, stop in teacher_windows
        )
        ends = token_ends(window, student)
        for number, end in enumerate(ends):
            start = ends[number - 1] if number else window.start
            row, teacher_end, teacher_id = position.get((window.document, start), (-1, -1, -1))
            assert window.fields["teacher_rows"][number] == row
            assert window.fields["next_teacher_ids"][number] == teacher_id
            last = last_of.get((window.document, start), (-1, -1, 0))
            assert last_token(window, number) == (last if start - last[2] >= window.start else (-1, -1, 0))
            expected = NextToken.UNALIGNED
            if row >= 0:
                aligned += 1
                shorter_context += (window.document, window.start) not in teacher_starts
                expected = NextToken.SHORTER if end < teacher_end else NextToken.LONGER
                expected = NextToken.SAME if end == teacher_end else expected
            assert window.fields["next_tokens"][number] == expected
            one_to_one += expected == NextToken.SAME
            longer += expected == NextToken.LONGER
    split_counts = split.counts
    assert (split_counts.aligned, split_counts.one_to_one, split_counts.overhanging) == (aligned, one_to_one, longer)
    assert split_counts.shorter_context == shorter_context
    assert (split_counts.windows, split_counts.student_windows) == (len(split.teacher), len(split.student))
    assert split_counts.teacher_tokens == sum(len(window.ids) for window in split.teacher)
    assert split_counts.student_tokens == sum(len(window.ids) for window in split.student)


def last_token(window: Window, number: int) -> tuple[int, int, int]:
    rows, ids, n_read = (window.fields[f"last_teacher_{name}"] for name in ("rows", "ids", "bytes"))
    return rows[number], ids[number], n_read[number]


def _is_lost(owner: Encoder, text: str) -> bool:
    ids = owner.tokenizer.encode(text, add_special_tokens=False).ids
    return b"".join(owner.token_bytes.table[token] or b"" for token in ids) != text.encode()


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None)
@given(texts=TEXTS, limits=st.tuples(st.integers(8, 40), st.integers(8, 40)))
@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece", "lossy"])
def test_r14_windows_of_any_documents(kind: str, texts: list[str], limits: tuple[int, int]) -> None:
    student = STUDENTS[kind]
    with TemporaryDirectory() as folder:
        if all(not text or _is_lost(student, text) for text in texts):
            with pytest.raises(DataError, match="no window came out"):
                make_split(texts, TEACHER, student, Path(folder), *limits)
        else:
            check(make_split(texts, TEACHER, student, Path(folder), *limits), texts, TEACHER, student, limits)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)
@given(texts=TEXTS, limits=st.tuples(st.integers(8, 24), st.integers(8, 24)))
def test_r14_windows_of_the_real_pair(
    qwen3: Encoder, smollm2: Encoder, texts: list[str], limits: tuple[int, int]
) -> None:
    texts = [text + " end" for text in texts] + ["always spelled"]
    with TemporaryDirectory() as folder:
        split = make_split(texts, qwen3, smollm2, Path(folder), *limits)
        check(split, texts, qwen3, smollm2, limits)


def test_r12_teacher_windows_do_not_depend_on_the_student(tmp_path: Path) -> None:
    texts = [TEXT, "1234567890 " * 9, "tail \x04 naïve"]
    splits = [
        make_split(texts, TEACHER, student, tmp_path / name, 16, length)
        for name, student, length in (("a", STUDENT, 16), ("b", STUDENTS["lossy"], 9), ("c", TEACHER, 100))
    ]
    assert splits[0].student != splits[1].student
    files = [sorted((tmp_path / name / "teacher").iterdir()) for name in "abc"]
    assert [path.name for path in files[0]] == ["index.json", "shard_00000.safetensors"]
    for other in files[1:]:
        assert [path.read_bytes() for path in other] == [path.read_bytes() for path in files[0]]


def test_a_window_too_long_for_the_student_is_cut_at_common_boundaries(tmp_path: Path) -> None:
    split = make_split([TEXT], TEACHER, STUDENT, tmp_path, 64, 24)
    check(split, [TEXT], TEACHER, STUDENT, (64, 24))
    assert split.counts.forced_cuts == 0
    assert len(split.student) > len(split.teacher)
    boundaries = {end for window in split.teacher for end in token_ends(window, TEACHER)}
    assert all(window.stop in boundaries for window in split.student)


def test_no_remainder_is_left_where_the_student_needs_more_tokens_than_the_teacher(tmp_path: Path) -> None:
    student = encoder(byte_level(305), "student")
    split = make_split([TEXT], TEACHER, student, tmp_path, 64, 64)
    check(split, [TEXT], TEACHER, student, (64, 64))
    sizes = [len(window.ids) for window in split.student]
    assert len(sizes) == 2 * len(split.teacher) - 1  # all slices but the last need two windows
    assert min(sizes[:-1]) > 25


def test_a_long_teacher_token_forces_cuts_and_they_are_counted(tmp_path: Path) -> None:
    text = "a" * 64
    teacher = encoder(byte_level(600, text=" ".join([text] * 3), split=False), "teacher")
    student = encoder(byte_level(257), "student")  # one byte a token, "<|endoftext|>" aside
    assert len(teacher.tokenizer.encode(text).ids) == 1
    split = make_split([text], teacher, student, tmp_path, 16, 11)
    check(split, [text], teacher, student, (16, 11))
    assert [window.stop for window in split.student] == [9, 18, 27, 37, 46, 55, 64]
    assert split.counts.forced_cuts == 6
    assert [window.fields["teacher_rows"][0] for window in split.student] == [0, -1, -1, -1, -1, -1, -1]


def test_windows_are_never_cut_inside_a_character(tmp_path: Path) -> None:
    bytes_only = encoder(byte_level(257), "bytes")
    text = "🙂東é" * 10
    split = make_split([text], bytes_only, bytes_only, tmp_path, 8, 8)
    check(split, [text], bytes_only, bytes_only, (8, 8))
    assert any(len(window.ids) < 7 for window in split.teacher[:-1])


def reaching_over() -> Encoder:
    """Reads the last byte of one "é" and the first of the next as one token, so that no token ends between the two."""
    description = json.loads(byte_level(257).to_str())
    ((spelled, _),) = pre_tokenizers.ByteLevel(False).pre_tokenize_str("é")
    first, last = list(spelled)
    description["model"]["vocab"][last + first] = len(description["model"]["vocab"])
    description["model"]["merges"].append([last, first])
    return encoder(Tokenizer.from_str(json.dumps(description)), "reaching")


def test_a_document_without_a_place_to_cut_is_skipped_and_reported(tmp_path: Path) -> None:
    texts = ["a fox", "a fox " + "é" * 40 + " b", "a dog"]
    bytes_only, reaching = encoder(byte_level(257), "bytes"), reaching_over()
    for teacher, student, of_teacher in ((reaching, bytes_only, {0, 2}), (bytes_only, reaching, {0, 1, 2})):
        split = make_split(texts, teacher, student, tmp_path / teacher.name, 90, 30)
        short = make_split(texts, teacher, student, tmp_path / f"{teacher.name}_short", 30, 90)
        for each in (split, short):
            check_alignment(each, teacher, student)
        lost = short if teacher is reaching else split
        assert {window.document for window in lost.teacher} == of_teacher
        assert {window.document for window in lost.student} == {0, 2}
        which = f"test document {document(texts[1]).document_id[:12]}"
        assert lost.counts.skipped == [
            f"{which}: reaching cannot end a token between characters within 29 tokens of byte 6"
        ]
        kept = split if teacher is reaching else short
        assert kept.counts.skipped == []
        check(kept, texts, teacher, student, (90, 30) if teacher is reaching else (30, 90))


def test_a_run_of_korean_that_qwen3_cannot_cut_is_skipped(tmp_path: Path, qwen3: Encoder, smollm2: Encoder) -> None:
    texts = ["before", "one " + "흠" * 400, "흠" * 20]
    split = make_split(texts, qwen3, smollm2, tmp_path, 360, 384)
    assert {window.document for window in split.student} == {0, 2}
    assert [line.rpartition(": ")[2] for line in split.counts.skipped] == [
        "qwen3 cannot end a token between characters within 359 tokens of byte 3"
    ]


def test_a_document_that_the_student_cannot_spell_is_skipped_whole_and_reported(
    tmp_path: Path, smollm2: Encoder
) -> None:
    bad = "good text. " * 20 + "é\x04 and more good text" * 2
    texts = ["before " * 5, bad, "after " * 5]
    split = make_split(texts, TEACHER, smollm2, tmp_path, 16, 16)
    assert {window.document for window in split.teacher} == {0, 1, 2}
    assert {window.document for window in split.student} == {0, 2}
    offset = bad.encode().index(b"\x04")
    assert split.counts.skipped == [
        f"test document {document(bad).document_id[:12]}: smollm2 cannot spell byte {offset}"
    ]
    check_alignment(split, TEACHER, smollm2)


def test_a_document_that_the_teacher_cannot_spell_is_skipped_by_both(tmp_path: Path) -> None:
    teacher = STUDENTS["lossy"]
    split = make_split(["the fox", "the \x04", "the dog"], teacher, STUDENT, tmp_path)
    assert {window.document for window in split.teacher} == {window.document for window in split.student} == {0, 2}
    assert [line.rpartition(": ")[2] for line in split.counts.skipped] == ["lossy cannot spell byte 4"]


def test_documents_without_any_window_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no window came out of the split student") as caught:
        make_split(["", "\x04"], STUDENTS["lossy"], STUDENT, tmp_path)
    assert "lossy cannot spell byte 0" in str(caught.value)


@pytest.mark.parametrize("batch_bytes", [1, 1 << 18])
@pytest.mark.parametrize("cut", [0, 1, 2])
@pytest.mark.parametrize("n_windows", [1, 2, 1000])
def test_one_document_is_cut_and_the_others_are_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int, n_windows: int, batch_bytes: int
) -> None:
    monkeypatch.setattr("moe_distill.alignment.tokenize.BATCH_BYTES", batch_bytes)
    texts = ["the quick brown fox " * 8, "jumps over " * 20, TEXT[:300]]
    whole = make_split(texts, TEACHER, STUDENT, tmp_path / "all")
    place = Cut(hash_fraction(document(texts[cut]).document_id, "distil"), n_windows)
    part = make_split(texts, TEACHER, STUDENT, tmp_path / "some", cut=place)
    of_it = [window for window in whole.teacher if window.document == cut]
    assert len(of_it) > 2
    kept = [window for window in whole.teacher if window not in of_it[n_windows:]]
    assert spans(part.teacher) == spans(kept)
    last = of_it[:n_windows][-1].stop
    assert spans(part.student) == spans([w for w in whole.student if w.document != cut or w.stop <= last])
    check_alignment(part, TEACHER, STUDENT)


def spans(windows: list[Window]) -> list[tuple[int, int, int]]:
    return [(window.document, window.start, window.stop) for window in windows]


def test_batches_do_not_change_the_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["the quick brown fox " * 8, "", "the \x04", "jumps over " * 20, TEXT]
    together = make_split(texts, TEACHER, STUDENTS["lossy"], tmp_path / "one")
    monkeypatch.setattr("moe_distill.alignment.tokenize.BATCH_BYTES", 1)
    apart = make_split(texts, TEACHER, STUDENTS["lossy"], tmp_path / "many")
    assert apart == together
    check(apart, texts, TEACHER, STUDENTS["lossy"], (16, 16))


def test_teacher_rows_are_numbered_over_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moe_distill.alignment.tokenize.BATCH_BYTES", 1)
    texts = [TEXT[:200], TEXT[200:500], "the fox " * 30]
    split = make_split(texts, TEACHER, STUDENT, tmp_path, shard_tokens=10)
    assert len(list((tmp_path / "teacher").glob("shard_*"))) == 3
    check(split, texts, TEACHER, STUDENT, (16, 16))


@pytest.mark.parametrize("batch_bytes", [1, 30, 1 << 18])
def test_a_windows_source_is_that_of_its_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_bytes: int
) -> None:
    """However the documents fall into batches; a source whose documents are all skipped has no window."""
    monkeypatch.setattr("moe_distill.alignment.tokenize.BATCH_BYTES", batch_bytes)
    texts = [("a", "the fox"), ("a", "jumps over"), ("b", "the dog"), ("c", "\x04"), ("d", "quick"), ("d", "brown")]
    documents = [[replace(document(text), source=source)] for source, text in texts]
    folders = tmp_path / "t", tmp_path / "s"
    tokenize_split(documents, TEACHER, STUDENTS["lossy"], WindowLimits(16, 16, 100), *folders, "t", "s", ("T", "S"))
    names, numbers = WindowStore(tmp_path / "s", STUDENT_WINDOWS).sources()
    assert [names[number] for number in numbers.tolist()] == ["a", "a", "b", "d", "d"]


def test_index_says_what_the_windows_are(tmp_path: Path) -> None:
    limits = WindowLimits(16, 12, 100)
    student = encoder(STUDENT.tokenizer, "student")
    folders, keys = (tmp_path / "t", tmp_path / "s"), ("key t", "key s")
    tokenize_split([[document("the fox")]], TEACHER, student, limits, *folders, *keys, ("T", "S"))
    teacher_index = WindowStore(tmp_path / "t", TEACHER_WINDOWS).reader.index
    student_index = WindowStore(tmp_path / "s", STUDENT_WINDOWS).reader.index
    assert (teacher_index.fingerprint, student_index.fingerprint) == ("key t", "key s")
    assert teacher_index.metadata == {"prefix_id": 0, "max_length": 16, "tokenizer": "T"}
    assert student_index.metadata == {
        "prefix_id": 0,
        "max_length": 12,
        "tokenizer": "S",
        "teacher_windows": windows_fingerprint(teacher_index),
        "source_names": '["test"]',
        "source_starts": [0],
    }


STUDENTS = {
    "byte_level": STUDENT,
    "sentencepiece": encoder(sentencepiece("metaspace"), "sentencepiece"),
    "lossy": encoder(byte_level(200, text=TEXT + "1234567890\n", full_alphabet=False), "lossy"),
}
