"""Names of files: as they are shown, what tells a file from another, and the outputs that they lead to."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from monarch_sciml.errors import InputError
from monarch_sciml.mri import bart

__all__ = ["check_names", "identity", "shown", "stem"]

LONGEST = 240  # bytes of a name, so that 255 suffice for what is added to it


def check_names(files: Sequence[Path], out: Path) -> list[Path]:
    """The output for each file, in the folder ``out``.

    Raises:
        InputError: outputs that would overwrite each other, also on disks that do not tell A from a, or the
            data; names that are none, or too long for what is added to them.
    """
    outputs = [out / f"{stem(path)}.h5" for path in files]
    names = [shown(path) for path in outputs]
    if len({unicodedata.normalize("NFC", name).casefold() for name in names}) < len(names):
        found = f"{sorted(name.removesuffix('.h5') for name in names)}"
        remedy = "rename one; name BART's pair once"
        raise InputError("files of different names, not in case alone", found, remedy)
    for path, output in zip(files, outputs, strict=True):
        if not path.name or len(os.fsencode(output.stem)) > LONGEST or "\0" in str(path):
            expected = f"file names of 1 to {LONGEST} bytes without their ending, none of them NUL"
            raise InputError(expected, f"{shown(path)!r}", "rename the file")
    # k-space of that name may lie there, even if of another format
    lying = {os.path.realpath(path.parent) for path in files}
    lying |= {os.path.dirname(os.path.realpath(path)) for path in files}
    if os.path.realpath(out) in lying:
        raise InputError("another folder than that of the data", f"{out}", "choose another --out")
    return outputs


def identity(path: Path) -> list[str | int]:
    """A file as it is now: name, size and time of its last change. Of BART's pair, the numbers."""
    if not path.name:  # of no file
        return [str(path)]
    numbers = path.with_name(path.name.removesuffix(".hdr").removesuffix(".cfl") + ".cfl")
    for candidate in (numbers, path):
        if candidate.is_file():
            about = candidate.stat()
            return [shown(candidate), about.st_size, about.st_mtime_ns]
    return [shown(path)]


def stem(path: Path) -> str:
    """The name of the output: that of the input without its ending; BART's pair may be named without one."""
    pair = bart.pair(path)
    return path.name.removesuffix(path.suffix) if pair is None else pair[1].name.removesuffix(".cfl")


def shown(path: Path) -> str:
    """The name as text: the bytes of a file name need not be any."""
    return os.fsencode(path.name).decode("utf-8", "replace")
