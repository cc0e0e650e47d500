"""BART's pair of files: ``.hdr`` states the dimensions, ``.cfl`` holds complex64, the first one fastest."""

import math
import os
from pathlib import Path

from monarch_sciml.errors import InputError, decoding

__all__ = ["DIMENSIONS", "SLICE", "dimensions", "flat_axis", "pair"]

DIMENSIONS = ["READ", "PHS1", "PHS2", "COIL", "MAPS", "TE", "COEFF", "COEFF2"]
DIMENSIONS += ["ITER", "CSHIFT", "TIME", "TIME2", "LEVEL", "SLICE", "AVG", "BATCH"]
SLICE = 13


def pair(path: Path) -> tuple[Path, Path] | None:
    """(``.hdr``, ``.cfl``) if ``path`` is one of them or their common name, else None."""
    if not path.name:
        return None
    base = path.with_suffix("") if path.suffix in (".cfl", ".hdr") else path
    hdr, cfl = (base.with_name(base.name + suffix) for suffix in (".hdr", ".cfl"))
    # of os.path, as names that cannot be are no mistake here
    named = base != path or (not os.path.exists(path) and os.path.isfile(hdr) and os.path.isfile(cfl))
    return (hdr, cfl) if named else None


def dimensions(hdr: Path, cfl: Path) -> list[int]:
    """The dimensions in the header, sixteen at least, as many numbers as ``.cfl`` holds.

    Raises:
        InputError: one of the two is missing, a damaged header, or a file of another length.
    """
    absent = [path.name for path in (hdr, cfl) if not path.is_file()]
    if absent:
        raise InputError("a BART pair .cfl and .hdr", f"no {absent[0]} in {cfl.parent}", "keep both together")
    with decoding(hdr, "BART header"):
        # other sections hold commands and names of files, in any encoding
        lines = [line.strip() for line in hdr.read_text("utf-8", errors="replace").splitlines()]
        dims = [int(number) for number in lines[lines.index("# Dimensions") + 1].split()]
    dims += [1] * (len(DIMENSIONS) - len(dims))
    if min(dims) < 0:
        raise InputError("dimensions ≥ 0", f"{dims} in {hdr.name}", "write it again")
    size, bytes_expected = cfl.stat().st_size, 8 * math.prod(dims)
    if size != bytes_expected:
        found = f"{size} in {cfl.name}"
        raise InputError(f"{bytes_expected} bytes for the dimensions in {hdr.name}", found, "write it again")
    return dims


def flat_axis(dims: list[int]) -> int | None:
    """The one of the first three dimensions that a plane lacks, its length is 1; None of a volume."""
    return next((i for i in (2, 0, 1) if dims[i] == 1), None)
