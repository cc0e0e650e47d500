"""Files that several processes share: who waits for whom, and one error for all that failed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from monarch_sciml.errors import InputError
from monarch_sciml.mri.names import shown
from monarch_sciml.training.distributed import joined, world

__all__ = ["Failed", "all_of", "sharing"]

Failed = dict[Path, InputError]
"""Files that cannot be used, and why."""

PATIENCE = timedelta(days=3650)  # a file of another process may take longer than any time to wait for
SAID = 3  # errors that are told in full


@contextlib.contextmanager
def sharing() -> Iterator[Callable[[Failed], Failed]]:
    """The processes find each other; given is a function that waits for all and returns what failed of each.

    ``torchrun`` ends all processes as soon as one has failed: so none may before the others are done. A
    process on its own, or one that was told its ``RANK`` but no ``MASTER_ADDR``, waits for nobody. The
    function raises ``InputError`` where another process died.
    """
    unknown = "RANK" in os.environ and "MASTER_ADDR" not in os.environ and not dist.is_initialized()
    if world()[1] == 1 or unknown:
        yield lambda failed: failed
        return
    with joined("cpu"):
        group = dist.new_group(backend="gloo", timeout=PATIENCE)
        yield lambda failed: _of_all(failed, group)


def _of_all(failed: Failed, group: Any) -> Failed:
    every: list[Failed] = [{}] * world()[1]
    try:
        dist.all_gather_object(every, failed, group=group)
    except RuntimeError as error:  # of the connection, which is closed
        found, remedy = "one that did not", "see above why, if it said so; a rerun keeps what is finished"
        raise InputError("all processes to end well", found, remedy) from error
    return {path: error for one in every for path, error in one.items()}


def all_of(failed: Mapping[Path, InputError], files: int) -> InputError:
    """One error for all: the one that every file has, or a list."""
    first, *others = failed.values()
    if len(failed) == files and all(str(error) == str(first) for error in others):
        return first
    listed = [f"{shown(path)} ({error})" for path, error in failed.items()]
    listed[SAID:] = [shown(path) for path in list(failed)[SAID:]]
    found = f"{len(failed)} that cannot: {', '.join(listed)}"
    remedy = "mend them or leave them out; what is finished is kept"
    return InputError(f"{files} files that can be reconstructed", found, remedy)
