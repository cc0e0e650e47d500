"""docs/exact_forms.md is what its generator writes, and the generator's errors are rounding errors."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("exact_forms", ROOT / "benchmarks" / "exact_forms.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def without_error(line):
    return line.rsplit("|", 2)[0] if line.startswith("|") else line


@pytest.mark.parametrize("n", [64, 360, 225, 101])
def test_the_committed_table_is_the_generated_one(script, n):
    written = script.DOC.read_text()
    assert written.startswith(script.TEXT)
    lines = script.table(n)
    start = written.splitlines().index(lines[1])
    committed = written.splitlines()[start : start + len(lines) - 1]
    assert list(map(without_error, committed)) == list(map(without_error, lines[1:]))
    errors = [float(line.split("|")[-2]) for line in lines[5:]]
    assert len(errors) > 15
    assert max(errors) < 1e-13
