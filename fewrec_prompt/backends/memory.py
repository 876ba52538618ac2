"""How much memory this process has needed at its worst. One number, for benchmarks and reports."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path


def peak_memory(device: str) -> int:
    """Bytes at the highest point so far: of tensors on a GPU, of the whole process (resident) on a CPU."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    return _high_water(Path("/proc/self/status")) or _resource_usage()


def _high_water(status: Path) -> int | None:
    # getrusage counts what the parent held when it started this process; the kernel's own mark begins with the program.
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE) if status.exists() else None
    return 1024 * int(found[1]) if found else None


def _resource_usage() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
