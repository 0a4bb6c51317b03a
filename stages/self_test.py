"""self_test: hold both models against themselves, in seconds, before anything long is computed of them."""

from pathlib import Path

from moe_distill.config.params import Params
from moe_distill.config.profile import most_positions_with_states, require_router_positions
from moe_distill.models.config_checks import check_capture, read_sizes
from moe_distill.pipeline.stage_runner import run
from moe_distill.teacher.self_tests import run_self_tests
from moe_distill.utils.files import write_json


def main(params: Params) -> None:
    # What capture and router will need is no dependency: it can only refuse, and a model of the hub has come only now.
    capture = params.profile.teacher
    check_capture(read_sizes(Path("models/teacher")), capture.k, capture.hidden_layers)
    metrics = run_self_tests(params.profile.windows, Path("models/teacher"), Path("models/student_init"))
    if metrics["router_replayable"] and params.experiment.losses.terms_of_states():
        require_router_positions(most_positions_with_states(params.profile), "at most ")
    write_json(Path("data/self_test.json"), {"models": "right"})  # a constant: no later stage changes because of it
    write_json(Path("metrics/self_test.json"), metrics)


if __name__ == "__main__":
    run("self_test", main)
