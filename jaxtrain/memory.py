"""Give memory back. Imports nothing of ours.

glibc keeps what was freed for itself: a gigabyte after a large compilation, two after a large checkpoint, and the next
program is allocated on top.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc


def give_back() -> None:
    """Return freed memory to the system, where the C library can; elsewhere do nothing."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
