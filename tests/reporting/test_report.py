"""The report as a page: whole in one file, honest, and nothing of a sample's text taken for markup."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from moe_distill.reporting.markdown import cell, coded, fenced
from moe_distill.reporting.report import write_report
from tests.reporting.crafted import NO_BASELINE, SECTIONS, Page, crafted_inputs, written


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, str]:
    return written(tmp_path_factory.mktemp("report"), {})


def test_the_page_has_every_section_and_needs_no_other_file(report: tuple[Page, str]) -> None:
    page, _ = report
    assert [found["id"] for tag, found in page.elements if tag == "section"] == SECTIONS
    assert not page.attribute("src")
    assert not [tag for tag, _ in page.elements if tag in ("script", "link", "img", "iframe", "object")]
    assert all(link.startswith("#") for name in ("href", "xlink:href") for link in page.attribute(name))
    assert "url(" not in page.texts["style"][0]
    assert "@import" not in page.texts["style"][0]
    ids = set(page.attribute("id"))
    assert {link[1:] for link in page.attribute("href")} <= ids, "a link of the page leads nowhere"
    assert len(page.attribute("id")) == len(ids), "an id stands twice"


def test_pictures_take_the_colour_of_the_page_in_light_and_dark(report: tuple[Page, str]) -> None:
    page, _ = report
    pictures = [found for tag, found in page.elements if tag == "svg"]
    assert len(pictures) == 3 + 4, "bits per byte, experts, calibration; total, bits per byte, kd, lm"
    assert all(found["aria-label"] for found in pictures)
    assert "prefers-color-scheme: dark" in page.texts["style"][0]
    styles = [style for tag, found in page.elements for style in [found.get("style") or ""] if tag in ("text", "path")]
    colours = set(re.findall(r"(?:fill|stroke): (#\w+|currentColor)", " ".join(styles)))
    assert "currentColor" in colours
    assert not colours & {"#000000", "#ffffff", "#123456"}, "unseen on one of the two grounds"


def test_the_teacher_is_drawn_on_the_windows_of_the_curves(report: tuple[Page, str], tmp_path: Path) -> None:
    page, text = report
    for told in (page.texts["figcaption"][0], text):
        assert "Of the 4 validation windows (of 12) that the training watches; so is the teacher's line." in told
    all_of_them, _ = written(tmp_path, {"watched_windows": 12.0})
    assert "Of all 12 validation windows" in all_of_them.texts["figcaption"][0]


def test_what_a_person_asks_for_is_told(report: tuple[Page, str]) -> None:
    page, _ = report
    cells = page.texts["td"] + page.texts["th"]
    for told in ("86.1%", "81.2%", "1 min 01 s", "5.0 MB", "Abacus 9, 2 cores", "torch 9.9", "2026-01-02", "4,000,000"):
        assert told in cells
    assert "0123456789abcdef, with 1 changed files: src/a.py" in cells
    assert any("dvc exp run -S 'temperature=2.0'" in each for each in page.texts["pre"])
    assert "0.1000 bits per byte" in page.texts["strong"][0]
    assert {"total", "bits per byte", "kd", "lm"} <= set(page.texts["figcaption"])
    assert "feature" not in page.texts["figcaption"], "a term that was never computed has no curve"


def test_samples_and_pieces_are_shown_as_they_are(report: tuple[Page, str]) -> None:
    page, text = report
    assert "\n# No <b>heading</b>" in page.texts["pre"]
    assert "\n\n&amp; <script>alert(1)</script>" in page.texts["pre"], "its first line is empty, and stays"
    assert [each for each in page.texts["span"] if each] == ["·<a>", "&", "·<", "a>", "&", "&", "&", "<i>", "&"]
    follows = [found for _, found in page.elements if "follows" in (found.get("class") or "")]
    assert len(follows) == 2, "the token that follows, among the target's and the student's"
    assert "```text\n# No <b>heading</b>\n```" in text
    assert "````text\n| ``` |\n````" in text, "the fence is longer than the one in the text"


@pytest.mark.parametrize("router", [True, False])
def test_without_a_baseline_its_rows_are_left_out_and_it_is_said(tmp_path: Path, router: bool) -> None:
    page, text = written(tmp_path, dict.fromkeys(NO_BASELINE), router)
    assert page.texts["strong"][0] == "What distillation gains over plain training was not measured"
    assert text.splitlines()[2].startswith("**What distillation gains over plain training was not measured**")
    rows = [row for table in page.texts["tbody"] for row in table.splitlines()]
    assert not [row for row in rows if "LM only" in row]
    assert "not measured" in page.texts["dd"]
    for told, key in ((" ".join(page.texts["p"]), "baseline: none"), (text, "`baseline: none`")):
        assert f"no row of the same student trained on the text alone: the profile says {key}" in told
    assert "no curve of plain training" in page.texts["figcaption"][0]
    assert ("experts" in page.attribute("id")) is router
    assert (tmp_path / "experts.png").exists() is router


def test_each_verdict_stands_at_the_top_of_both(tmp_path: Path) -> None:
    changes = {"gain_over_lm_only": -0.1, "gain_over_lm_only_low": -0.2, "gain_over_lm_only_high": -0.05}
    page, text = written(tmp_path, {"teacher_bits_per_byte": 1.95, "retention": 1.1, **changes})
    told = ["Distillation loses 0.1000 bits per byte", "The teacher is no better than the student"]
    told += ["The teacher is no better than plain training", "Retention is 1.100, above 1"]
    assert page.texts["strong"][:4] == told
    assert re.findall(r"^\*\*(.*?)\*\*", text, re.MULTILINE)[:4] == told


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium, Debian's package `chromium`")
def test_a_browser_shows_it_light_and_dark(tmp_path: Path) -> None:
    """The ground follows the reader's scheme, and so do text and pictures: each has a few per cent of the other's."""
    write_report(crafted_inputs(tmp_path, {}), tmp_path)
    shares = {}
    for scheme, number in (("dark", 0), ("light", 1)):
        picture = tmp_path / f"{scheme}.png"
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--blink-settings=preferredColorScheme={number}", "--window-size=400,3000"]
        command += [f"--screenshot={picture}", f"--user-data-dir={tmp_path / scheme}"]
        subprocess.run([*command, (tmp_path / "report.html").as_uri()], capture_output=True, check=True)
        grey = np.asarray(Image.open(picture).convert("L"))
        shares[scheme] = float((grey > 200).mean())
        assert (grey[0, 0] > 200) is np.bool_(scheme == "light")
    assert shares["light"] > 0.8
    assert 0.01 < shares["dark"] < 0.2


def test_markdown_of_any_text() -> None:
    assert coded("a `b: <c>` d") == "a <code>b: &lt;c&gt;</code> d"
    assert fenced("a") == "```text\na\n```"
    assert fenced("a ````` b").startswith("``````text\n")
    assert cell("a|b\nc") == "a\\|b c"


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("more/*.jsonl, other/*.jsonl", r"more/\*.jsonl, other/\*.jsonl"),
        ("my/<b>x</b>", r"my/\<b>x\</b>"),
        ("my/__teacher__ _a", r"my/\_\_teacher\_\_ \_a"),
        ("~/a, ~/b `c` [d](e) ![f](g)", r"\~/a, \~/b \`c\` \[d](e) !\[f](g)"),
        ("a\\*b\\|c", r"a\\\*b\\\|c"),
        ("AT&amp;T &#60; a & b", r"AT\&amp;T \&#60; a & b"),
        ("train_kd.max_steps 1.5 > 1", "train_kd.max_steps 1.5 > 1"),
    ],
)
def test_a_cell_shows_a_mark_of_markdown_as_it_is(text: str, written: str) -> None:
    """Two globs, say, were shown without their asterisks, and in italics between."""
    assert cell(text) == written
