"""Compiles the C++ kernels for the processor at hand, once, and keeps the result in a cache."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
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

    Takes some seconds the first time on a machine. The cache is ``$MONARCH_SCIML_CACHE``, or
    ``monarch_sciml`` in ``$XDG_CACHE_HOME`` or ``~/.cache``; the file's name depends on sources, compiler,
    processor and content. The compiler is ``$CXX``, which may have arguments, ``c++`` or ``g++``. With
    ``MONARCH_SCIML_NATIVE=0`` nothing is built.
    """
    if os.environ.get("MONARCH_SCIML_NATIVE", "1") == "0":
        return None
    try:
        compiler = _compiler()
        return None if compiler is None else ctypes.CDLL(str(_build(compiler)))
    # of a quotation in CXX without an end, of a home that nobody has
    except (ValueError, RuntimeError, OSError, subprocess.SubprocessError):
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


def _compiler() -> list[str] | None:
    """A command, as far as there is one."""
    commands = (shlex.split(command) for command in (os.environ.get("CXX", ""), "c++", "g++"))
    return next((command for command in commands if command and shutil.which(command[0])), None)


def _build(compiler: list[str]) -> Path:
    # what -march=native means here, and which compiler it is
    target = subprocess.run(
        [*compiler, "-march=native", "-E", "-v", "-x", "c++", os.devnull], capture_output=True, check=True
    ).stderr
    sources = sorted(SOURCES.glob("*.cpp")), sorted(SOURCES.glob("*.h"))
    content = [path.read_bytes() for group in sources for path in group]
    key = hashlib.sha256(b"\0".join([target, *content, " ".join(FLAGS).encode()])).hexdigest()[:16]
    folder = _folder()
    built = next((path for path in folder.glob(f"kernels-{key}-*.so") if _is_whole(path)), None)
    if built is None:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            out = Path(scratch) / "kernels.so"
            subprocess.run(
                [*compiler, *FLAGS, *map(str, sources[0]), "-o", str(out)], capture_output=True, check=True
            )
            built = folder / f"kernels-{key}-{_digest(out)}.so"
            os.replace(out, built)  # whole or not at all, whoever else builds at the same time
    return built


def _folder() -> Path:
    """The cache; homes are often read-only on the machines that compute, and XDG_CACHE_HOME elsewhere."""
    if given := os.environ.get("MONARCH_SCIML_CACHE"):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "monarch_sciml"


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _is_whole(path: Path) -> bool:
    """Whether the content is that of the name: loading a library cut short ends the process."""
    return path.stem.endswith(_digest(path))
