"""Memory of large results, used again: on a fresh page the first touch costs more than the arithmetic.

glibc gives an array of more than 32 MiB back to the system when it is released, and the next one begins with
pages that have to be found, zeroed and, to be large, moved together. Here the memory of a released result
waits for the next one of its size; what nobody took for ten seconds is given back when a kernel runs next.
"""

from __future__ import annotations

import math
import mmap
import sys
import time
import weakref
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import torch
from torch import Tensor

__all__ = ["empty", "empty_like", "fresh"]

LEAST = 1 << 24  # bytes; smaller ones stay with glibc, which keeps them
PAGE = 1 << 21  # large pages have 2 MiB on x86, and multiples of those on ARM are rare
SECONDS = 10.0
# by size, since when and what, oldest first; taking from and adding to an end need no lock
_idle: defaultdict[int, deque[tuple[float, mmap.mmap]]] = defaultdict(deque)
_in_use = sys.platform == "linux"


def empty(shape: Sequence[int], like: Tensor) -> Tensor:
    """As ``like.new_empty(shape)``, for the real part of an operator and for the fake one."""
    if (
        not _in_use or type(like) is not Tensor
    ):  # sizes of fake tensors are symbols that nothing may be asked of
        return like.new_empty(shape)
    if _idle:
        _give_up()
    count = math.prod(shape)
    size = count * like.element_size()
    if size < LEAST:
        return like.new_empty(shape)
    block = _take(-(-size // PAGE) * PAGE)
    lease = memoryview(block)
    weakref.finalize(lease, _give_back, block).atexit = False
    return torch.frombuffer(lease, dtype=like.dtype, count=count).view(shape)


def empty_like(x: Tensor) -> Tensor:
    """As ``torch.empty_like(x)``, x contiguous."""
    return empty(x.shape, x)


@contextmanager
def fresh() -> Iterator[None]:
    """Inside, all memory is torch's own: for those who count it."""
    global _in_use
    before, _in_use = _in_use, False
    try:
        yield
    finally:
        _in_use = before


def _take(size: int) -> mmap.mmap:
    """The block of this size that was released last, or a new one."""
    try:
        _, block = _idle[size].pop()
    except IndexError:
        block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        block.madvise(mmap.MADV_HUGEPAGE)
    return block


def _give_up() -> None:
    """Blocks that nobody took for long go back to the system."""
    long_ago = time.monotonic() - SECONDS
    for blocks in list(_idle.values()):
        with suppress(IndexError):  # another thread took the last one
            while blocks[0][0] < long_ago:
                blocks.popleft()


def _give_back(block: mmap.mmap) -> None:
    """When the last tensor on it is gone."""
    _idle[len(block)].append((time.monotonic(), block))
