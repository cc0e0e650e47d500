"""Ctrl-C and SIGTERM as a question that is answered between two steps."""

import signal
from types import FrameType
from typing import Any

__all__ = ["Interruption"]


class Interruption:
    """Inside the context, SIGINT and SIGTERM only set ``asked``; a second SIGINT ends at once.

    Outside of the main thread, where signals cannot be handled, nothing is ever asked.
    """

    def __init__(self) -> None:
        self.asked = False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        self.before = {int(kind): signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}
        self.listen()
        return self

    def __exit__(self, *error: Any) -> None:
        self._handle(self.before)

    def listen(self) -> None:
        """Take the signals over, again after someone else did."""
        self._handle({signal.SIGINT: self._ask, signal.SIGTERM: self._ask})

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True

    @staticmethod
    def _handle(handlers: dict[int, Any]) -> None:
        try:
            for kind, handler in handlers.items():
                signal.signal(kind, handler)
        except ValueError:  # not the main thread
            pass
