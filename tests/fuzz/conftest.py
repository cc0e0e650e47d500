"""Every fuzz test runs as many cases as it says, or all that there are; the summary has their number."""

from collections.abc import Generator
from typing import Any

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """Count the cases of one test, and insist on all of them."""
    inner: Any = getattr(getattr(getattr(item, "obj", None), "hypothesis", None), "inner_test", None)
    before = getattr(inner, "ran", 0)
    yield
    if inner is not None:
        ran = inner.ran - before
        item.user_properties.append(("fuzz cases", ran))  # which also a worker process reports
        assert ran >= inner.wanted, f"only {ran} cases of {inner.wanted}"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The number of cases that were run."""
    passed = [report for report in terminalreporter.stats.get("passed", ()) if report.when == "call"]
    counts = [count for report in passed for name, count in report.user_properties if name == "fuzz cases"]
    if counts:
        terminalreporter.write_line(f"{sum(counts)} fuzz cases in {len(counts)} tests")
