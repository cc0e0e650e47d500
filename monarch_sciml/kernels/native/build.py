"""Compiles the C++ kernels for the processor at hand, once, and keeps the result in a cache."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from torch import Tensor

__all__ = ["available", "call", "library"]

SOURCES = Path(__file__).resolve().parent
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fopenmp", "-fPIC", "-shared")


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where they cannot be built: without a C++ compiler that knows OpenMP.

    Takes some seconds the first time on a machine. The cache is ``$MONARCH_SCIML_CACHE`` or
    ``~/.cache/monarch_sciml``; the file's name depends on sources, compiler and processor. With
    ``MONARCH_SCIML_NATIVE=0`` nothing is built.
    """
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
    if compiler is None or os.environ.get("MONARCH_SCIML_NATIVE", "1") == "0":
        return None
    try:
        return ctypes.CDLL(str(_build(compiler)))
    except (OSError, RuntimeError, subprocess.SubprocessError):  # RuntimeError: nobody has a home here
        return None


def available() -> bool:
    """Whether there is a ``library``."""
    return library() is not None


# what torch.compiler.assume_constant_result does, without the second that importing the compiler takes
available._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


def call(name: str, sizes: Sequence[int], *operands: Tensor | None) -> None:
    """Run a kernel: pointers to its sizes, as its C++ struct lists them, and to contiguous operands.

    None and empty tensors are passed as null. The operands live as long as the call does, because the caller
    holds them.
    """
    pointers = [ctypes.c_void_p(None if t is None or t.numel() == 0 else t.data_ptr()) for t in operands]
    getattr(library(), name)((ctypes.c_ssize_t * len(sizes))(*sizes), *pointers)


def _build(compiler: str) -> Path:
    # what -march=native means here, and which compiler it is
    target = subprocess.run(
        [compiler, "-march=native", "-E", "-v", "-x", "c++", os.devnull], capture_output=True, check=True
    ).stderr
    sources = sorted(SOURCES.glob("*.cpp")), sorted(SOURCES.glob("*.h"))
    content = [path.read_bytes() for group in sources for path in group]
    key = hashlib.sha256(b"\0".join([target, *content, " ".join(FLAGS).encode()])).hexdigest()[:16]
    folder = Path(os.environ.get("MONARCH_SCIML_CACHE") or Path.home() / ".cache" / "monarch_sciml")
    path = folder / f"kernels-{key}.so"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            out = Path(scratch) / path.name
            subprocess.run(
                [compiler, *FLAGS, *map(str, sources[0]), "-o", str(out)], capture_output=True, check=True
            )
            with out.open("rb") as file:
                os.fsync(file.fileno())  # a library cut short by a power cut ends every process that loads it
            os.replace(out, path)  # whole or not at all, whoever else builds at the same time
    return path
