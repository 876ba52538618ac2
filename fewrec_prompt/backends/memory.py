"""Memory of this process: how much it has needed at its worst, and what must not grow with the number of users."""

from __future__ import annotations

import os
import re
import resource
import sys
from pathlib import Path

KERNELS = 32  # a pass needs a dozen


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


def keep_few_kernels() -> None:
    """Bound the kernels that oneDNN keeps: in bf16 on a CPU one for every shape of a product, by default 1,024 of them.

    Each user brings another number of tokens, and so other shapes: about 5 MB a user (docs/LOG.md). To be called before
    the first product; a setting of a person's own stands.
    """
    for name in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):  # torch's cache of them, and oneDNN's own
        os.environ.setdefault(name, str(KERNELS))


def out_of_memory(error: Exception) -> bool:
    """Did the memory run out? On a CPU torch says so with a RuntimeError like any other."""
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
