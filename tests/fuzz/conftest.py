"""Every fuzz test runs as many cases as it says; the summary has their number."""

from collections.abc import Generator
from typing import Any

import pytest

CASES: dict[str, int] = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """Count the cases of one test, and insist on all of them."""
    inner: Any = getattr(getattr(getattr(item, "obj", None), "hypothesis", None), "inner_test", None)
    before = getattr(inner, "ran", 0)
    yield
    if inner is not None:
        CASES[item.nodeid] = inner.ran - before
        assert CASES[item.nodeid] >= inner.wanted, f"only {CASES[item.nodeid]} cases of {inner.wanted}"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The number of cases that were run."""
    terminalreporter.write_line(f"{sum(CASES.values())} fuzz cases in {len(CASES)} tests")
