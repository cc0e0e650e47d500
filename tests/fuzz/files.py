"""Ways to damage files, as strategies, and things that are no files at all."""

import os
import struct
from pathlib import Path

from hypothesis import strategies as st

__all__ = ["DAMAGE", "PLACES", "loops_in_hdf5", "place"]

DAMAGE = {
    "kind": st.sampled_from(["flip", "overwrite", "insert", "remove", "zero", "repeat", "cut"]),
    # headers lie at the beginning, and those of archives at the end
    "at": st.one_of(st.floats(0, 1), st.floats(0, 0.1), st.floats(0.97, 1)),
    "count": st.integers(1, 600),
    "fill": st.one_of(
        st.binary(min_size=1, max_size=16),
        st.sampled_from([b"\xff" * 8, b"\x7f" + b"\xff" * 7, b"\x00\x00\x7f\xf8"]),
    ),
}
PLACES = [
    "nothing",
    "empty",
    "folder",
    "fifo",
    "loop",
    "dangling",
    "device",
    "long",
    "user",
    "text",
    "NUL",
    "root",
    "current",
]


def place(folder: Path, kind: str, suffix: str) -> Path:
    """A path in ``folder`` at which there is no data."""
    path = folder / f"{kind}{suffix}"
    match kind:
        case "empty":
            path.write_bytes(b"")
        case "text":
            path.write_text("words\n")
        case "folder":
            path.mkdir(exist_ok=True)
        case "fifo" if not path.exists():
            os.mkfifo(path)
        case "loop" if not path.is_symlink():
            path.symlink_to(path)
        case "dangling" if not path.is_symlink():
            path.symlink_to(folder / "absent")
    others = {
        "device": "/dev/null",
        "long": "a" * 300 + suffix,
        "user": f"~nobody_of_this_name/a{suffix}",
        "NUL": f"a\0b{suffix}",
        "root": "/",
        "current": "",
    }
    return Path(others.get(kind, path))


def loops_in_hdf5(content: bytes) -> bool:
    """Whether HDF5 2.0 itself would never return, whoever calls it: a heap of texts that does not advance.

    Its objects are (index, count, reserved, size); number 0, the free space, has no header of its own.
    """
    start = content.find(b"GCOL")
    while start >= 0:
        (size,) = struct.unpack_from("<Q", content.ljust(start + 16, b"\0"), start + 8)
        at, end = start + 16, min(start + size, len(content))
        while at + 16 <= end:
            index, _, _, length = struct.unpack_from("<HHIQ", content, at)
            step = (length if index == 0 else 16 + (length + 7) // 8 * 8) % 2**64
            if step == 0 or step >= 2**63:
                return True
            at += step
        start = content.find(b"GCOL", start + 4)
    return False
