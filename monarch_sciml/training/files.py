"""Files that are whole or not there: written beside their place, then renamed. One writer at a time."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from monarch_sciml.errors import InputError
from monarch_sciml.training.distributed import world

__all__ = ["lock", "whole_file", "whole_files"]


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A neighbour to write to, ``<path>.partial``, which takes the name ``path`` only if all went well.

    What had the name before is replaced then, and kept if anything fails; the folder is made if need be.
    A process that is killed leaves the neighbour, which the next one to write ``path`` replaces.

    Raises:
        InputError: the name is that of a folder.
        OSError: nothing can be written there.
    """
    if path.is_dir():
        raise InputError("the name of a file", f"the folder {path}", "name a file in it")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)  # should it be a link, what it points to is not ours
    try:
        yield partial
        _to_disk(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_files(folder: Path) -> Iterator[Path]:
    """A folder ``.partial`` inside ``folder`` to write to; its files move into ``folder`` if all went well.

    They replace earlier ones of their names, which are kept if anything fails. Several processes may do this
    at a time.

    Raises:
        OSError: nothing can be written there.
    """
    rank, _ = world()
    partial = folder / (f".partial{rank}" if rank else ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        paths = sorted(partial.iterdir())
        for path in paths:
            _to_disk(path)
        for path in paths:
            os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def lock(descriptor: int) -> None:
    """Hold the file or folder until it is closed or the process ends; ``BlockingIOError`` if another does.

    A lock that the file system does not know is done without.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        pass


def _to_disk(path: Path) -> None:
    """A full or broken disk may say so only here; and a power cut must not leave a name without content."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
