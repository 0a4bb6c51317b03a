"""A project folder that is moved to another disk or machine in the middle of its work goes on there."""

import shutil

from moe_distill.utils.files import folder_fingerprint
from tests.end_to_end.conftest import Checkout
from tests.end_to_end.test_pipeline import KILLED_AT_CHECKPOINT


def test_r21_a_moved_project_goes_on_from_its_checkpoint(own_checkout: Checkout) -> None:
    """Killed in the middle of phase 2, moved, and finished by the same command, with the bytes of the unbroken run."""
    expected, old = folder_fingerprint(own_checkout.folder / "models/student_router"), own_checkout.folder
    own_checkout.run("python", "-c", KILLED_AT_CHECKPOINT, code=-9, PYTHONPATH="src:.")
    shutil.rmtree(old / "models/student_router")  # as DVC does before it runs a stage
    moved = Checkout(old.rename(old.with_name("another disk")))
    output = moved.run("dvc", "repro", "--force", "--single-item", "train_router")
    assert "resumed at step 20" in output
    assert folder_fingerprint(moved.folder / "models/student_router") == expected
    assert not old.exists()
