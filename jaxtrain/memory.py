"""Memory of this machine: how much there is, what to do about too little, and giving it back.

glibc keeps what was freed for itself: a gigabyte after a large compilation, two after a large
checkpoint, and the next program is allocated on top.
"""

import contextlib
import ctypes
import gc
import os
import resource
from pathlib import Path

from jaxtrain.errors import UserError

GIB = 2**30
# GiB. With two cores 3.3 of the quickstart are resident at once; more cores take more
LEAST_ADDRESS_SPACE = 4
SHRINK = {
    "search": "prompts.batch_size, search.num_trees, search.num_candidates, "
    "search.num_simulations, search.mcts_star.num_rollout_steps",
    "answering": "prompts.batch_size, evaluation.search.num_trees, "
    "evaluation.search.num_candidates, evaluation.search.num_simulations",
    "sampling": "prompts.batch_size, evaluation.samples.num_samples, trace.max_steps",
    "policy update": "updates.policy.batch_size",
    "PRM update": "updates.prm.batch_size",
}


def give_back() -> None:
    """Return freed memory to the system, where the C library can; elsewhere do nothing."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def machine_memory() -> float:
    """Return the bytes that processes here may fill: the machine's, or its container's if less."""
    sizes = [float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))]
    with contextlib.suppress(OSError, ValueError):  # no container, or "max"
        sizes.append(float(Path("/sys/fs/cgroup/memory.max").read_text("ascii")))
    return min(sizes)


def check_address_space() -> None:
    """Raise UserError for a limit within which the compiler would abort, which none can catch."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if 0 <= limit < LEAST_ADDRESS_SPACE * GIB:
        told = f"ulimit -v allows {limit / GIB:.1f} GiB of address space, and the quickstart alone"
        then = "raise it with ulimit -v unlimited"
        raise UserError(f"{told} takes {LEAST_ADDRESS_SPACE} GiB; {then}")


def is_exhausted(error: Exception) -> bool:
    """Tell whether an error means too little memory, here or on a device."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def shrink(*programs: str) -> str:
    """Name the keys that would make programs smaller; all of them if none is named."""
    keys = [key for program in programs or SHRINK for key in SHRINK[program].split(", ")]
    return ", ".join(f"--config.{key}" for key in dict.fromkeys(keys))
