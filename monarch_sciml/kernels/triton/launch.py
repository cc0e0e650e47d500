"""What every kernel shares: the checks before a launch, the memory it writes to, the tiles it works on.

Kernels call built-in functions of ``triton.language`` only: ``tl.full``, not ``tl.zeros``, which is a kernel
function of Triton itself and would be interpreted only if ``TRITON_INTERPRET`` had been set before anything,
torch included, imported Triton.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Literal, get_args

import torch
import triton
import triton.language as tl
from torch import Tensor

from monarch_sciml.errors import InputError

__all__ = ["MANY", "Precision", "check", "cover", "dot", "empty", "jit", "planes", "power", "run"]

Precision = Literal["ieee", "tf32x3", "tf32"]
# programs that keep an H200 busy: two for each of its 132 multiprocessors
MANY = 264
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


# a type checker takes the call of a kernel function, which only other kernels may make, for an error
jit: Any = triton.jit


@jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """acc + a b in float32; PRECISION says how float32 operands are multiplied."""
    return tl.dot(a, b, acc, input_precision=PRECISION)


@jit
def planes(A, plane, step, inside, CONJ: tl.constexpr):
    """A tile of a complex matrix from its real and imaginary planes: real part, imaginary part.

    ``plane`` points to the real parts, the imaginary ones lie ``step`` further; zero outside.
    """
    real = tl.load(A + plane, inside, other=0.0)
    imag = tl.load(A + plane + step, inside, other=0.0)
    return real, -imag if CONJ else imag


# whether kernels run as numpy on the CPU: decided by TRITON_INTERPRET when they were defined
_INTERPRETED = not isinstance(dot, triton.JITFunction)


def check(tensors: Sequence[Tensor], precision: str) -> None:
    """Raises ``InputError`` unless a kernel can take these tensors: one device, one real dtype it knows."""
    devices = {t.device for t in tensors}
    if len(devices) > 1 or not (_INTERPRETED or next(iter(devices)).type == "cuda"):
        found = ", ".join(sorted(map(str, devices)))
        raise InputError("tensors on one CUDA device", found, "move them there, or use backend 'gemm'")
    dtypes = {t.dtype for t in tensors}
    if len(dtypes) > 1 or not dtypes <= set(_DTYPES):
        found = ", ".join(sorted(map(str, dtypes)))
        raise InputError(
            "operands all float32, float16 or bfloat16", found, "convert them, or use backend 'gemm'"
        )
    if _INTERPRETED and torch.bfloat16 in dtypes:
        found, remedy = "torch.bfloat16, which it multiplies wrongly", "use float16, or backend 'gemm'"
        raise InputError("another dtype in Triton's interpreter", found, remedy)
    if precision not in get_args(Precision):
        raise InputError(f"a precision among {get_args(Precision)}", repr(precision), "pass one of them")


def empty(like: Tensor, *shape: int) -> Tensor:
    """Memory for a result that a kernel writes in full."""
    return like.new_empty(shape)


def cover(n: int, tile: int) -> int:
    """How many tiles cover n."""
    return -(-n // tile)


def power(n: int, low: int, high: int) -> int:
    """The power of two at or above n, within [low, high]: a tile that wastes little of its masked rim."""
    return min(max(1 << (max(n, 1) - 1).bit_length(), low), high)


def run(kernel: Any, programs: int, x: Tensor, *arguments: Any, **constants: Any) -> None:
    """Runs so many programs of a kernel, whose first argument is x, on the device of x.

    ``constants`` are its compile-time ones and ``num_warps``. Loads run one step ahead of the arithmetic:
    deeper pipelines cost shared memory that a second program on the same multiprocessor uses better.
    """
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
        kernel[(programs,)](x, *arguments, **constants, num_stages=2)
