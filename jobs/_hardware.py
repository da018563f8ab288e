"""The machine in words, and how long a packaged model takes on it."""

from __future__ import annotations

import os
import platform
import statistics
import time
from pathlib import Path

import torch

from dakter.packaging import Packaged


def hardware() -> str:
    """The machine in words, e.g. ``"2 cores of AMD EPYC 9R14, 23 GiB, no GPU"``."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2] for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].strip() if names else model
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{os.cpu_count()} cores of {model}, {memory_gib:.0f} GiB, {gpu}"


def measured_on() -> str:
    """The machine, with what of it a latency was measured on: the GPU, or torch's threads."""
    where = "on the GPU" if torch.cuda.is_available() else f"torch threads: {torch.get_num_threads()}"
    return f"{hardware()}; {where}, float32"


@torch.inference_mode()
def median_ms(package: Packaged, size_px: int, runs: int) -> float:
    """Median milliseconds from one raw image ``size_px`` squared to its probabilities, where the package's weights are.

    One further run comes first and is not counted. On a GPU each run is waited for; the image is there already.
    """
    device = package.low.device
    image = package.example(size_px)[:1, ..., :size_px].contiguous()

    def once() -> float:
        start = time.perf_counter()
        package(image)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return 1000 * (time.perf_counter() - start)

    once()
    return statistics.median(once() for _ in range(runs))
