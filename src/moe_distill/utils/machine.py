"""The machine: its cores, and all of it in words, for logs and reports."""

import os
import platform
from pathlib import Path

import psutil


def describe_machine() -> str:
    """Processor, cores that this process may use, memory; and the GPU, where there is one."""
    memory = psutil.virtual_memory().total / 2**30
    parts = [_processor(), f"{usable_cores()} cores", f"{memory:.0f} GiB of memory", *_gpus()]
    return ", ".join(parts)


def usable_cores() -> int:
    """Cores that this process may use: all of the machine's where the system cannot bind a process to some (macOS)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        if line.startswith("model name"):
            return " ".join(line.partition(":")[2].split())
    return platform.processor() or platform.machine()


def _gpus() -> list[str]:
    import torch  # takes seconds, which only those who ask for it need

    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
