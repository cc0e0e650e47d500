"""What all fuzz tests share: how many cases, what bounds each of them, and the one way to say no.

A case is one call with drawn input. It gives a result, which its test then checks, or raises InputError with
one line of text. Any other exception, a warning, more than a few seconds or a gigabyte of new addresses
is a failure. The draws are the same in every run; ``MONARCH_SCIML_FUZZ=20`` draws twenty times as many, and
others each time.
"""

import contextlib
import functools
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings

from monarch_sciml.errors import InputError

__all__ = ["Trap", "answer", "damage", "fuzz", "guarded"]

TIMES = int(os.environ.get("MONARCH_SCIML_FUZZ", "1"))
SECONDS = 5.0  # of this process; waiting, for a pipe or a busy machine, may take six times as long
BYTES = 2**30  # of addresses, which is more than what is used


def fuzz(cases: int, **strategies: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """``hypothesis.given`` with the drawn cases counted, and each of them bounded in time and memory.

    Their number is ``function.hypothesis.inner_test.ran``; conftest.py compares it with ``.wanted``.
    """

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def counted(*arguments: Any, **drawn: Any) -> None:
            counted.ran += 1  # type: ignore[attr-defined]
            with guarded():
                test(*arguments, **drawn)

        counted.ran, counted.wanted = 0, cases  # type: ignore[attr-defined]
        profile = settings(
            max_examples=cases * TIMES,
            derandomize=TIMES == 1,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.explicit, Phase.generate, Phase.shrink],
        )
        return profile(given(**strategies)(counted))

    return decorate


class TooLong(BaseException):
    """Not an Exception: nobody on the way may take it for a damaged file."""


def _too_long(signum: int, frame: FrameType | None) -> None:
    raise TooLong


@contextlib.contextmanager
def guarded(seconds: float = SECONDS, size: int = BYTES) -> Iterator[None]:
    """Fail what takes longer than that, and refuse it more memory than that."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    if sys.platform == "linux":
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + size, limits[1]))
    before = [signal.signal(number, _too_long) for number in (signal.SIGALRM, signal.SIGPROF)]
    signal.setitimer(signal.ITIMER_REAL, 6 * seconds)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    except TooLong:
        raise AssertionError(f"more than {seconds} seconds") from None
    finally:
        for timer in (signal.ITIMER_REAL, signal.ITIMER_PROF):
            signal.setitimer(timer, 0)
        for number, handler in zip((signal.SIGALRM, signal.SIGPROF), before, strict=True):
            signal.signal(number, handler)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def answer(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What comes out, or the InputError, whose text is one printable line with all three parts."""
    try:
        return call(*arguments, **options)
    except InputError as error:
        refusal = error
    text = str(refusal)
    assert text.isprintable(), repr(text)
    assert len(text) < 4000
    assert len(refusal.args) == 3
    assert all(isinstance(part, str) and part for part in refusal.args), refusal.args
    return refusal


def damage(content: bytes, kind: str, place: float, count: int, fill: bytes) -> bytes:
    """``content`` with something done to it at ``place``, from 0 (the first byte) to 1 (the last)."""
    at = min(int(place * len(content)), max(len(content) - 1, 0))
    match kind:
        case "flip":
            return content[:at] + bytes(255 - byte for byte in content[at : at + 1]) + content[at + 1 :]
        case "overwrite":
            return content[:at] + fill + content[at + len(fill) :]
        case "insert":
            return content[:at] + fill + content[at:]
        case "remove":
            return content[:at] + content[at + count :]
        case "zero":
            return content[:at] + bytes(len(content[at : at + count])) + content[at + count :]
        case "repeat":
            return content[:at] + content[at : at + count] + content[at:]
        case _:
            return content[:at]  # cut short


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.target,)
