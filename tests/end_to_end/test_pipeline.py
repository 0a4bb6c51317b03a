"""The real pipeline on a small profile, as a user runs it. Tests that change the checkout have a copy."""

import csv
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from moe_distill.corpus.documents import read_documents
from moe_distill.shards.teacher_store import open_targets
from moe_distill.utils.files import folder_fingerprint
from tests.end_to_end.conftest import Checkout, ran, runs_of
from tests.reporting.crafted import SECTIONS, Page

pytestmark = pytest.mark.usefixtures("first_run")

ALL = {"check", "corpus", "models@teacher", "models@student", "self_test", "tokenize", "teacher_correction"}
ALL |= {"teacher", "teacher_examples", "teacher_lead"}
ALL |= {"train_kd", "train_router", "control", "evaluate", "student"}
CONTRACT = {
    "tokenize": "windows train_tokens_student train_tokens_teacher aligned_position_coverage one_to_one_coverage "
    "shorter_context_row_share exact_vocabulary_share",
    "teacher_correction": "corrected",
    "teacher": "positions bytes_per_position logit_bytes_per_position positions_per_second nonfinite_batches "
    "text_token_probability",
    "teacher_lead": "teacher_bits_per_byte student_init_bits_per_byte lead_bits_per_byte",
    "train_kd": "steps stopped_early train_tokens_per_second skipped_steps validation_lm_raw validation_lm_weighted "
    "validation_kd_raw validation_kd_weighted",
    "train_router": "steps stopped_early train_tokens_per_second skipped_steps validation_lm_raw validation_kd_raw "
    "validation_feature_raw validation_router_balance_weighted expert_share_0 expert_share_3 expert_entropy "
    "gate_divergence",
    "evaluate": "teacher_bits_per_byte student_init_bits_per_byte student_bits_per_byte student_kd_bits_per_byte "
    "lm_only_bits_per_byte gain_over_lm_only gain_over_lm_only_low gain_over_lm_only_high "
    "retention student_nll_per_token student_perplexity top1_agreement "
    "top5_overlap kl_teacher_student expected_calibration_error teacher_parameters student_parameters "
    "compression_ratio teacher_bytes student_bytes bytes_ratio student_tokens_per_second teacher_tokens_per_second",
}


def metrics(checkout: Checkout, stage: str) -> dict[str, float]:
    figures: dict[str, float] = json.loads((checkout.folder / f"metrics/{stage}.json").read_text())
    return figures


def test_first_run_runs_every_stage_and_keeps_the_metrics_contract(checkout: Checkout, first_run: str) -> None:
    assert ran(first_run) == ALL
    for stage, names in CONTRACT.items():
        figures = metrics(checkout, stage)
        assert set(names.split()) <= set(figures), stage
        assert all(isinstance(value, float | int) and math.isfinite(value) for value in figures.values()), stage
    assert (
        metrics(checkout, "evaluate")["student_bits_per_byte"]
        < metrics(checkout, "evaluate")["student_init_bits_per_byte"]
    )
    assert metrics(checkout, "train_router")["skipped_steps"] == 0


def test_shards_are_many_and_whole(checkout: Checkout) -> None:
    reader = open_targets(checkout.folder / "data/teacher_shards/train")
    reader.verify()
    assert len(reader.index.files) >= 8


def test_r05_logged_total_is_the_sum_of_the_weighted_terms(checkout: Checkout) -> None:
    for stage in ("train_kd", "train_router", "control"):
        for kind in ("", "_validation"):
            with (checkout.folder / f"metrics/curves/{stage}{kind}.tsv").open() as file:
                rows = list(csv.DictReader(file, delimiter="\t"))
            assert rows
            for row in rows:
                weighted = [float(value) for name, value in row.items() if name.endswith("_weighted") and value]
                assert abs(sum(weighted) - float(row["total"])) < 1e-5
                assert row["lm_raw"]  # R6: always logged


def test_r09_learning_rate_is_above_zero_from_the_first_step(checkout: Checkout, first_run: str) -> None:
    with (checkout.folder / "metrics/curves/train_kd.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert rows[0]["step"] == "1"
    assert all(float(row["learning_rate"]) > 0 for row in rows)
    assert "lr 1.0e-03" in first_run


def test_validation_documents_never_reach_training(checkout: Checkout) -> None:
    ids = {
        split: {
            document.document_id
            for batch in read_documents(checkout.folder / f"data/corpus/{split}.parquet")
            for document in batch
        }
        for split in ("train", "validation")
    }
    assert ids["train"]
    assert ids["validation"]
    assert not ids["train"] & ids["validation"]


def test_exported_student_is_an_ordinary_model(checkout: Checkout) -> None:
    folder = checkout.folder / "models/student"
    assert "model-index:" in (folder / "README.md").read_text()
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer("Return the", return_tensors="pt")
    assert model.generate(**inputs, max_new_tokens=4, do_sample=False).shape[1] > inputs["input_ids"].shape[1]
    initial = load_file(checkout.folder / "models/student_init/model.safetensors")
    assert set(load_file(folder / "model.safetensors")) == set(initial)  # no projection, no router


def test_second_run_runs_nothing_but_check(checkout: Checkout) -> None:
    assert ran(checkout.run("dvc", "repro")) == {"check"}


def test_wrong_keys_stop_the_run_before_any_work(own_checkout: Checkout) -> None:
    for file, old, new, key in (
        ("params.yaml", "temperature: 1.0", "temperature: hot", "temperature"),
        ("params.yaml", "kd_weight:", "kd_wieght:", "kd_wieght"),
        ("profiles/test.yaml", "max_steps:", "max_stepps:", "train.max_stepps"),
    ):
        own_checkout.edit(file, old, new)
        output = own_checkout.run("dvc", "repro", code=None)
        line = own_checkout.stage("check", code=2)
        own_checkout.edit(file, new, old)
        assert ran(output) == {"check"}
        assert len(line.splitlines()) == 1
        assert key in line
        assert file in line
        assert line.strip() in output


def test_runs_stand_in_mlflow_with_their_phases(checkout: Checkout) -> None:
    client = MlflowClient(f"sqlite:///{checkout.folder / 'mlflow.db'}")
    runs = runs_of(client)
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == 1
    nested = {
        run.data.tags["moe_distill.stage"]: run
        for run in runs
        if run.data.tags.get("mlflow.parentRunId") == parents[0].info.run_id
    }
    assert {"train_kd", "train_router", "control", "evaluate"} <= set(nested)
    assert parents[0].data.params["temperature"] == "1.0"
    assert len(client.get_metric_history(nested["train_router"].info.run_id, "train/lm")) == 55
    figure = metrics(checkout, "evaluate")["student_bits_per_byte"]
    assert parents[0].data.metrics["final/student_bits_per_byte"] == figure
    assert {run.info.status for run in runs} == {"FINISHED"}
    for stage in ("train_kd", "train_router", "control"):
        told, run = metrics(checkout, stage), nested[stage].info
        assert (told["ended_at"] - told["started_at"]) * 1000 == pytest.approx(run.end_time - run.start_time, abs=5000)
        assert run.end_time - run.start_time > 1000, "of the training, not of what was written about it"


def test_r23_another_temperature_trains_and_evaluates_only(own_checkout: Checkout) -> None:
    before = folder_fingerprint(own_checkout.folder / "models/student")
    output = own_checkout.run("dvc", "exp", "run", "-S", "temperature=3.0")
    assert ran(output) == {"check", "train_kd", "train_router", "evaluate", "student"}
    assert folder_fingerprint(own_checkout.folder / "models/student") != before
    output = own_checkout.run("dvc", "exp", "run", "-S", "temperature=1.0")
    assert ran(output) <= {"check"}  # the rest comes from the run cache
    assert folder_fingerprint(own_checkout.folder / "models/student") == before


def test_another_student_tokenizer_leaves_the_teacher_alone(own_checkout: Checkout) -> None:
    own_checkout.edit("profiles/test.yaml", "vocabulary_size: 500", "vocabulary_size: 520")
    output = own_checkout.run("dvc", "repro", "--dry")
    assert "models@student" in ran(output)
    assert "models@teacher" not in ran(output)


def test_r16_r21_training_needs_no_teacher_and_resumes_bit_exactly(own_checkout: Checkout) -> None:
    """With models/teacher gone and a kill in the middle of phase 2, the weights are those of the unbroken run."""
    expected = folder_fingerprint(own_checkout.folder / "models/student_router")
    shutil.rmtree(own_checkout.folder / "models/teacher")
    own_checkout.run("python", "-c", KILLED_AT_CHECKPOINT, code=-9, PYTHONPATH="src:.")
    output = own_checkout.stage("train_router")
    assert "resumed at step 20" in output
    assert folder_fingerprint(own_checkout.folder / "models/student_router") == expected
    assert all((work / "done.json").exists() for work in (own_checkout.folder / ".work/train_router").glob("*/"))


KILLED_AT_CHECKPOINT = """
import os, signal
from moe_distill.training import loop
save = loop.save_checkpoint
def save_and_die(folder, checkpoint):
    save(folder, checkpoint)
    if checkpoint.step == 20:
        os.kill(os.getpid(), signal.SIGKILL)
loop.save_checkpoint = save_and_die
from stages.train_router import main
from moe_distill.config.params import load_params
main(load_params())
"""


def test_pictures_and_tables_of_dvc_work(checkout: Checkout) -> None:
    assert "student_bits_per_byte" in checkout.run("dvc", "metrics", "show")
    assert "train_router" in checkout.run("dvc", "dag")
    assert "temperature" in checkout.run("dvc", "exp", "show", "--csv")


def test_plots_of_dvc_are_drawn_without_a_network(checkout: Checkout) -> None:
    page = checkout.run("dvc", "plots", "show").strip()
    assert page.startswith("file://")
    assert (checkout.folder / "dvc_plots/static/workspace_reports_bits_per_byte.png").is_file()
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("no chromium")
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND")
    seen = checkout.run(browser, *options, "--virtual-time-budget=10000", "--dump-dom", page)
    assert seen.count('class="marks"') == 2  # the two curves; DVC's own page has neither


def test_r27_size_and_speed_of_both_models(checkout: Checkout) -> None:
    figures = metrics(checkout, "evaluate")
    counts = {
        role: sum(
            tensor.numel() for tensor in load_file(checkout.folder / f"models/{folder}/model.safetensors").values()
        )
        for role, folder in (("teacher", "teacher"), ("student", "student"))
    }
    assert figures["teacher_parameters"] == counts["teacher"]
    assert figures["student_parameters"] == counts["student"]
    assert figures["compression_ratio"] == pytest.approx(counts["teacher"] / counts["student"])
    assert (figures["teacher_bytes"], figures["student_bytes"]) == (4 * counts["teacher"], 4 * counts["student"])
    assert figures["teacher_tokens_per_second"] == metrics(checkout, "teacher")["positions_per_second"]


def test_report_is_written(checkout: Checkout) -> None:
    names = {path.name for path in (checkout.folder / "reports").iterdir()}
    assert {"report.html", "report.md", "bits_per_byte.png", "experts.png"} <= names
    assert "| teacher |" in (Path(checkout.folder) / "reports/report.md").read_text()
    page = Page((checkout.folder / "reports/report.html").read_text())
    assert [found["id"] for tag, found in page.elements if tag == "section"] == SECTIONS
    [times] = [table for table in page.texts["tbody"] if "train_router" in table]
    for stage in ALL - {"check", "evaluate", "student"}:
        [row] = re.findall(rf"^{stage}(\d.*)$", times, re.MULTILINE)
        assert re.fullmatch(r"(\d+\.\d s|\d+ min \d\d s)([\d.]+ (MB|kB|bytes)|none)", row), row
    commit = checkout.run("git", "rev-parse", "HEAD").strip()
    assert any(f"git checkout {commit}\nmake install\ndvc repro" in each for each in page.texts["pre"])


def test_without_a_baseline_only_what_tells_of_it_runs(own_checkout: Checkout) -> None:
    own_checkout.edit("profiles/test.yaml", "baseline: full", "baseline: none")
    output = own_checkout.run("dvc", "repro")
    assert ran(output) == {"check", "control", "evaluate", "student"}
    assert not [name for name in metrics(own_checkout, "evaluate") if "lm_only" in name]
    report = (own_checkout.folder / "reports/report.html").read_text()
    assert "What distillation gains over plain training was not measured" in report
    assert "FAIL" not in own_checkout.run("moe-distill", "verify")
    assert "file://" in own_checkout.run("dvc", "plots", "show")
    assert "what distillation gains" in own_checkout.run("moe-distill", "doctor")
    assert ran(own_checkout.run("dvc", "repro")) == {"check"}


def test_command_line_tools_work_on_a_finished_run(own_checkout: Checkout) -> None:
    assert "ok    data/teacher_shards/train\n" in own_checkout.run("moe-distill", "verify")
    assert "float32" in own_checkout.run("moe-distill", "doctor")
    client = MlflowClient(f"sqlite:///{own_checkout.folder / 'mlflow.db'}")
    count = len(runs_of(client))
    own_checkout.run("moe-distill", "track", DVC_EXP_NAME="from-the-files")
    runs = runs_of(client)
    assert len(runs) == count + 5  # a parent and its four nested runs, made from the files alone
    parent = next(run for run in runs if run.data.tags.get("dvc_experiment") == "from-the-files")
    assert (
        parent.data.metrics["final/student_bits_per_byte"] == metrics(own_checkout, "evaluate")["student_bits_per_byte"]
    )


def test_corrupt_shard_is_found_and_named(own_checkout: Checkout) -> None:
    shard = own_checkout.folder / "data/teacher_shards/train/shard_00003.safetensors"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 4
    shard.unlink()  # a hard link into DVC's cache: never written to in place
    shard.write_bytes(content)
    output = own_checkout.run("moe-distill", "verify", code=3)
    assert "shard_00003.safetensors is corrupt" in output
    assert "Traceback" not in output
