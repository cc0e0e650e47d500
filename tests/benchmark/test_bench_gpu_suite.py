"""The GPU suite, on a CPU at small sizes: its sections run, and what fails is recorded."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from monarch_sciml import InputError
from monarch_sciml.benchmark import Case, Contender

PATH = Path(__file__).parents[2] / "benchmarks" / "gpu_suite.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("gpu_suite", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_suite"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["gpu_suite"]


@pytest.fixture(scope="module")
def result(script):
    return script.suite("cpu", quick=True, repeats=2)


def trial(script, **more):
    peer = Contender("peer", lambda: torch.ones(3), peer=True)
    return script.Trial(Case("case", [peer]), more, bytes=1000)


def failing():
    raise RuntimeError("no such | kernel\nand more")


def test_every_section_runs(script, result):
    assert script.sound(result)
    assert list(result["sections"]) == list(script.SECTIONS)
    assert result["copy_gb_s"] > 0
    methods = {row["method"] for row in result["sections"]["spectral convolution"]}
    assert {
        "ours, learned",
        "ours, gemm",
        "neuraloperator",
        "pruned rfft2",
        "rfft2 + irfft2 alone",
    } <= methods
    assert "ours, gemm" in {row["method"] for row in result["sections"]["Monarch product"]}
    cases = [row["case"] for row in result["sections"]["Monarch product"]]
    assert all(any(case.startswith(name) for case in cases) for name, *_ in script.PRECISIONS)
    assert torch.get_float32_matmul_precision() == "highest"


def test_the_tables_hold_every_row(script, result, tmp_path):
    script.write(result | {"tests": {"passed": True, "summary": "3 passed"}}, tmp_path)
    text = (tmp_path / "gpu_suite.md").read_text()
    assert "3 passed" in text
    assert json.loads((tmp_path / "gpu_suite.json").read_text())["sections"] == result["sections"]
    rows = [row for section in result["sections"].values() for row in section]
    lines = [line for line in text.splitlines() if line.startswith("| ") and "| method |" not in line]
    assert len(lines) == len(rows)
    assert {line.count("|") for line in lines} == {10}
    for line, row in zip(lines, rows, strict=True):
        assert line.startswith(f"| {row['case']} | {row['method']} | {row['ms']:.3g} ")


def test_what_cannot_be_built_or_run_leaves_a_row(script):
    good = Contender("good", lambda: torch.ones(3))
    more = {"good": lambda: good, "unbuilt": failing, "broken": lambda: replace(good, run=failing)}
    rows = script.measure(trial(script, **more), "cpu", 2, copy=1e9)
    assert [row["method"] for row in rows] == ["peer", "good", "unbuilt", "broken"]
    assert [row["failed"] for row in rows[2:]] == ["RuntimeError: no such / kernel"] * 2
    report = {"machine": {}, "copy_gb_s": 1.0, "sections": {"a": rows}}
    assert not script.sound(report)
    assert script.sound({**report, "sections": {"a": rows[:2]}})
    assert not script.sound(
        {**report, "sections": {"a": rows[:2]}, "tests": {"passed": False, "summary": ""}}
    )
    assert "| case | broken | RuntimeError: no such / kernel | " in script.markdown(report)


def test_a_backend_that_refuses_is_left_out_and_one_that_fails_is_not(script):
    def run(backend):
        if backend == "gemm":
            raise RuntimeError("a failure to be seen when it is measured")
        raise InputError("another device", backend, "do not force it")

    assert script.usable(run) == ["gemm"]
    assert "auto" not in script.usable(lambda backend: None)


def test_bandwidth_is_bytes_over_time(script):
    (row,) = script.measure(trial(script), "cpu", 2, copy=1e9)
    assert row["gb_s"] == pytest.approx(1000 / (row["ms"] * 1e-3) / 1e9)
    assert row["of_copy"] == pytest.approx(row["gb_s"])


def test_outputs_that_differ_are_not_sound(script):
    wrong = Contender("wrong", lambda: torch.zeros(3))
    rows = script.measure(trial(script, wrong=lambda: wrong), "cpu", 2, copy=1e9)
    report = {"machine": {}, "copy_gb_s": 1.0, "sections": {"a": rows}}
    assert not script.sound(report)
    assert "outputs differ" in script.markdown(report)
    rows[1]["method"] = script.PEER_COMPILED  # not ours to answer for
    assert script.sound(report)


def test_one_failure_does_not_end_the_suite(script, monkeypatch):
    def broken(device, quick):
        yield replace(trial(script), case=Case("no peer", []))
        yield trial(script)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(script, "SECTIONS", {"a": broken, "b": lambda device, quick: [trial(script)]})
    sections = script.suite("cpu", quick=True, repeats=2)["sections"]
    assert "one peer" in sections["a"][0]["failed"]
    assert sections["a"][1]["method"] == "peer"
    assert sections["a"][2]["failed"] == "RuntimeError: out of memory"
    assert [row["method"] for row in sections["b"]] == ["peer"]


def test_no_trial_begins_when_time_is_over(script, monkeypatch):
    monkeypatch.setattr(script, "SECTIONS", {"a": lambda device, quick: [trial(script)]})
    result = script.suite("cpu", quick=True, repeats=2, seconds=-1)
    assert result["sections"]["a"] == [{"case": "case", "method": "all", "failed": "no time was left"}]


def test_without_a_gpu_it_says_so(script, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert script.main() == 2
    assert capsys.readouterr() == ("", "gpu_suite: expected a CUDA device; found none that torch can use\n")


@pytest.mark.parametrize("passed", [True, False])
def test_the_main_program(script, monkeypatch, tmp_path, capsys, passed, result):
    tests = {"passed": passed, "summary": "7 passed"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(script, "gpu_tests", lambda: tests)
    monkeypatch.setattr(script, "suite", lambda device, seconds: dict(result))
    monkeypatch.setattr(script, "RESULTS", tmp_path)
    assert script.main() == (0 if passed else 1)
    assert json.loads((tmp_path / "gpu_suite.json").read_text())["tests"] == tests
    assert "tests: 7 passed" in capsys.readouterr().out


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_kernels_and_graphs(script):
    x = torch.randn(64, 64, device="cuda")
    contender = Contender("two", lambda: (x + 1).exp())
    captured = script.graphed(contender)
    assert script.kernel_count(contender.run, "cuda") == script.kernel_count(captured.run, "cuda") == 2
    x.fill_(2)
    assert captured.run().equal((x + 1).exp())
