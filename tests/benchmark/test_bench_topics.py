"""``monarch-sciml bench``: every topic end to end at small sizes, what it writes, and how it refuses."""

import json
from typing import Any

import pytest
import torch

from monarch_sciml.benchmark import BenchConfig, bench, linear, mri, report, spectral, step
from monarch_sciml.benchmark.harness import relative_error
from monarch_sciml.benchmark.peers import PrunedFFTConv
from monarch_sciml.cli import main

CASES = {"spectral": 10, "linear": 6, "mri": 4, "step": 1}  # at least


def run(*arguments: str) -> int:
    try:
        main(["bench", "--quick", "--repeats", "2", *arguments])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.mark.parametrize("topic", CASES)
def test_every_topic_prints_a_table_of_equal_outputs(topic, tmp_path, capsys):
    file, threads = tmp_path / "bench.json", torch.get_num_threads()
    assert run(topic, "--threads", str(threads), "--json", str(file)) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert f"threads {threads}, device cpu, cpu " in out.splitlines()[0]
    assert f"## {topic}" in out
    assert "outputs differ" not in out
    saved = json.loads(file.read_text())
    assert saved["machine"]["torch"] == torch.__version__
    assert saved["machine"]["date"] in out
    (rows,) = saved["tables"].values()
    cases = {row["case"] for row in rows}
    assert len(cases) >= CASES[topic]
    for case in cases:
        of_case = [row for row in rows if row["case"] == case]
        assert len(of_case) > 1
        assert [row["peer"] for row in of_case].count(True) == 1
        for row in of_case:
            assert row["error"] <= 1e-5
            assert row["memory_mb"] > 0
            assert f"| {case} | {row['method']} | " in out


def test_all_topics_by_default(monkeypatch, capsys):
    for topic in report.TOPICS.values():
        monkeypatch.setattr(topic, "cases", lambda device, quick: iter(()))
    assert list(bench(BenchConfig()).tables) == list(report.TOPICS) == list(CASES)
    assert capsys.readouterr().out.count("##") == 4


def test_outputs_that_differ_end_in_an_error(monkeypatch, capsys):
    plain = spectral.neuralop_conv

    def damaged(conv):
        peer: Any = plain(conv)
        with torch.no_grad():
            peer.weight.tensor[0, 0, 0, 0] += 1
        return peer

    monkeypatch.setattr(spectral, "neuralop_conv", damaged)
    assert run("spectral") == 1
    out, err = capsys.readouterr()
    assert "| outputs differ |" in out
    assert err.startswith("monarch-sciml: outputs differ: ours, learned in 16², modes 3")
    assert err.count("\n") == 1


def test_a_wrong_gradient_alone_is_seen():
    ((_, ours), (_, peer), (_, pruned)), x = spectral.contenders(2, 3, 8, 2)
    assert isinstance(pruned, PrunedFFTConv)
    with torch.no_grad():
        pruned.weight[0, 0, 0, 0] *= 1 + 1e-3
    expected, found, wrong = (
        contender.compared(contender.run())
        for contender in (spectral.forward_backward("", model, x) for model in (peer, ours, pruned))
    )
    assert len(expected) == len(found) == 4  # output, x, weight and bias
    assert relative_error(found, expected) < 1e-6
    assert relative_error(wrong, expected) > 1e-5
    shuffled = [found[0], found[1], found[2].flip(0), found[3]]
    assert relative_error(shuffled, expected) > 0.1


def test_learned_transforms_are_part_of_what_is_timed():
    models, x = spectral.contenders(1, 2, 8, 2)
    results = [spectral.forward_backward(name, model, x).run() for name, model in models]
    assert [len(result) for result in results] == [2 + 2 + 8, 4, 4]  # four transforms of two factors
    assert all(torch.as_tensor(g).count_nonzero() for g in results[0])
    y = spectral.forward("", models[0][1], x).run()
    assert isinstance(y, torch.Tensor)
    assert not y.requires_grad


def test_sizes_are_those_announced():
    assert [(B, C, n, m) for B, C, n, m in spectral.SIZES] == [
        (20, 32, 64, 12),
        (8, 64, 128, 16),
        (4, 64, 256, 32),
    ]
    assert len({B * n * n for B, _, n, _ in spectral.GROWING}) == 1
    name = next(spectral.cases()).name
    assert name == "64², modes 12, batch 20, channels 32, forward"


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float32, 5e-3), (torch.bfloat16, 3e-2)]
)
@pytest.mark.parametrize("n", [64, 32, 30, 7])
def test_products_in_every_precision_and_size(n, dtype, tolerance, backward):
    case = linear.product(n, 5, "cpu", backward=backward, dtype=dtype, tolerance=tolerance)
    results = [contender.compared(contender.run()) for contender in case.contenders]
    outputs = [[y] if isinstance(y, torch.Tensor) else list(y) for y in results]
    expected = outputs[2] if case.reference is None else case.reference
    assert (case.reference is None) == (tolerance == 1e-5)
    assert len(expected) == 1 + backward
    for output in outputs:
        assert output[0].dtype == dtype
        assert relative_error(output, expected) < tolerance
    assert relative_error([2 * t for t in outputs[0]], expected) > 0.9


def test_the_bare_fft_is_compared_through_shifts():
    case = mri.transform((7, 10), 2, "cpu")
    ours, centred, bare = (c.run() for c in case.contenders)
    assert relative_error([ours], [centred]) < 1e-5
    assert relative_error([bare], [centred]) > 0.5
    assert relative_error([case.contenders[2].compared(bare)], [centred]) < 1e-6


def test_a_step_begins_with_the_same_prediction_and_trains():
    (case,) = step.cases(quick=True)
    ours, fixed, peer, products = ([c.run() for _ in range(8)] for c in case.contenders)
    for other in (ours, fixed, products):
        assert relative_error(other[:1], peer[:1]) < 1e-5
    for trained in (ours, fixed):
        assert relative_error(trained[7:], trained[:1]) > 0.01
    assert relative_error(fixed[7:], ours[7:]) > 1e-4  # its transforms did not learn
