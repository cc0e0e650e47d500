"""One kind of message for everything a person can get wrong: expected, found, remedy."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["InputError", "check_written", "decoding", "one_line"]

LONGEST = 1000  # characters of each part: what comes out of a file may be of any length


class InputError(ValueError):
    """Data, a file or a setting that cannot be used, said in one line.

    ``InputError("a grid of at least 12 points", "8 points", "lower n_modes to 8")`` reads
    *expected a grid of at least 12 points; found 8 points; lower n_modes to 8*. Names and texts out of files
    are made printable, so that they neither break the line nor reach the terminal as commands.
    """

    def __init__(self, expected: str, found: str, remedy: str):
        # the three parts are the arguments, so that the error survives its way out of a worker process
        super().__init__(expected, found, remedy)

    def __str__(self) -> str:
        expected, found, remedy = map(one_line, self.args)
        return f"expected {expected}; found {found}; {remedy}"


def one_line(text: str) -> str:
    """``text`` in one printable line of bounded length."""
    line = " ".join(text.split())
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line[:LONGEST])
    return (shown or "''") + ("…" if len(line) > LONGEST else "")


@contextmanager
def decoding(path: Path, what: str) -> Iterator[None]:
    """Say of any failure inside that ``path`` cannot be read: decoders raise all kinds of exceptions.

    Raises:
        InputError: naming the file, and the exception if it was another one than ``InputError``.
    """
    try:
        yield
    except InputError:
        raise
    except MemoryError:
        found = f"less than {path.name} takes"
        raise InputError(
            f"enough memory for a {what} file", found, "read less of it, or mend its sizes"
        ) from None
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        # the system's own errors have a number; those of decoders have none
        if isinstance(error, OSError) and error.errno is not None:
            remedy = "check the path and its permissions"
            raise InputError(f"a readable {what} file", f"{path.name} ({reason})", remedy) from error
        size = path.stat().st_size if path.is_file() else 0
        raise InputError(
            f"a readable {what} file",
            f"{path.name} of {size} bytes ({reason})",
            "it is damaged or incomplete: download or write it again",
        ) from error


def check_written(path: Path, name: str, array: Any) -> None:
    """Refuse an HDF5 dataset that was declared and not written: HDF5 reads zeros where nothing is.

    Raises:
        InputError: a part that is missing, or that lies in another file.
    """
    if array.is_virtual:
        parts = {
            path.parent / source.file_name for source in array.virtual_sources() if source.file_name != "."
        }
        absent = sorted(part.name for part in parts if not part.is_file())
        if absent:
            found = f"no {absent[0]} beside {path.name}"
            raise InputError(f"the files that {name!r} is made of", found, "keep them together")
        return
    if array.external:
        found = f"another file, {array.external[0][0]}"
        raise InputError(f"{name!r} to lie in {path.name} itself", found, "write it into one file")
    if array.chunks:
        written, things = array.id.get_num_chunks(), "pieces"
        wanted = math.prod(-(-n // c) for n, c in zip(array.shape, array.chunks, strict=True))
    else:
        written, wanted, things = array.id.get_storage_size(), array.nbytes, "bytes"
    if written < wanted:
        found, remedy = (
            f"{written} of {wanted} {things} in {path.name}",
            "let the writer end, or write it again",
        )
        raise InputError(f"the whole of {name!r}", found, remedy)
