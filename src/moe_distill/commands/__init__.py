"""The commands of `moe-distill`: doctor, plan, verify, recover, generate, inspect, export."""
