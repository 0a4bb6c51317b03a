"""What `moe-distill` does beside `dvc repro`: doctor, plan, verify, recover."""
