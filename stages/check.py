"""check: refuse what cannot run before anything runs; record fingerprints of local files, and defaults that are used.

Takes well under a second but for reading local files; the configurations of models that are here take seconds.
"""

from pathlib import Path

from moe_distill.config.params import Params
from moe_distill.log import log
from moe_distill.pipeline.default_values import OUTPUT as DEFAULTS
from moe_distill.pipeline.default_values import default_values
from moe_distill.pipeline.local_inputs import OUTPUT as LOCAL_INPUTS
from moe_distill.pipeline.local_inputs import local_inputs
from moe_distill.pipeline.parameter_checks import check_parameters
from moe_distill.pipeline.stage_runner import run
from moe_distill.utils.files import write_json

OUTPUT = Path("data/checked.json")


def main(params: Params) -> None:
    for warning in check_parameters(params):
        log(f"check: warning: {warning}")
    write_json(OUTPUT, {"parameters": "valid"})  # a constant: no later stage changes because of it
    write_json(LOCAL_INPUTS, local_inputs(params.profile))
    write_json(DEFAULTS, default_values(params.profile))


if __name__ == "__main__":
    run("check", main)
