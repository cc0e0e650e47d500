"""What the terminal sees: lines that read well, one for each failure, nothing that commands it."""

import os
import subprocess
import sys
from functools import partial

import pytest
from command_line import refused, status, table_of

from monarch_sciml import __version__
from monarch_sciml.cli import _aligned


@pytest.fixture
def refusal(capsys):
    """Run a command that must fail, and return its only line of output."""
    return partial(refused, capsys)


def program(*arguments: object, **options) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONWARNINGS": "error"}
    command = [sys.executable, "-m", "monarch_sciml", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **{**pipes, **options})


def test_module_runs_as_a_program():
    with program("--help") as process:
        out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert "usage: monarch-sciml" in out


def test_a_reader_that_leaves():
    """As ``| head`` does: nothing is said of it."""
    with program("pde", "train", "--help") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_version(capsys):
    assert status("--version") == 0
    assert capsys.readouterr() == (f"monarch-sciml {__version__}\n", "")


def test_nothing_in_a_name_commands_the_terminal(tmp_path, capsys):
    run = tmp_path / "\x1b[31mrun\a"
    assert status("pde", "evaluate", "--out", tmp_path / "out", "--runs", run) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.rstrip("\n").isprintable()
    assert "[31mrun" in err


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(28, "No space left on device", "runs/a"), "No space left on device: 'runs/a'; check"),
        (MemoryError(), "enough memory for these settings; found too little; lower them"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "enough memory for these settings"),
    ],
)
def test_a_failing_machine_ends_in_one_line(error, line, monkeypatch, refusal):
    def fails(command: object) -> None:
        raise error

    monkeypatch.setattr("monarch_sciml.cli._run", fails)
    assert line in refusal("info")


def test_a_mistake_of_ours_is_not_hidden(monkeypatch):
    def fails(command: object) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr("monarch_sciml.cli._run", fails)
    with pytest.raises(RuntimeError, match="shapes differ"):
        status("info")


def test_tables_are_aligned_and_the_same():
    markdown = "text | here\n\n| a | number |\n|---|---:|\n| long words | 1 |\n| b |  |\n\nend\n"
    expected = """text | here

| a          | number |
| ---------- | -----: |
| long words |      1 |
| b          |        |

end"""
    assert _aligned(markdown) == expected
    assert _aligned(expected) == expected


def test_a_narrow_terminal_gets_tables_without_bars(monkeypatch):
    markdown = f"| {'a' * 18} | number |\n|---|---:|\n| b | 1 |\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "31")
    assert _aligned(markdown).splitlines()[0] == f"| {'a' * 18} | number |"
    monkeypatch.setenv("COLUMNS", "30")
    assert _aligned(markdown).splitlines() == [f"{'a' * 18}  number", f"{'-' * 18}  -----:", f"b{' ' * 24}1"]


@pytest.mark.parametrize("command", ["pde generate --out {tmp}/a.h5", "mri simulate --out {tmp}/a"])
def test_of_several_processes_the_last_one_reports(command, tmp_path, monkeypatch, capsys):
    """The others return before the work of all is done."""
    monkeypatch.setattr("monarch_sciml.cli.generate", lambda path, *_, **__: path)
    monkeypatch.setattr("monarch_sciml.cli.simulate", lambda folder, *_, **__: [folder / "sim_0000.h5"])
    assert status(command.format(tmp=tmp_path)) == 0
    assert capsys.readouterr() == ("", "")


def test_of_several_processes_the_first_one_reports_a_training(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("monarch_sciml.cli.train", lambda config: config.out)
    (tmp_path / "metrics.csv").write_text("epoch,seconds,rollout\n1,2.5,0.123456\n")
    for rank, expected in ((1, ""), (0, f"{tmp_path}\n")):
        monkeypatch.setattr("monarch_sciml.cli.world", lambda rank=rank: (rank, 2))
        assert status("pde train --quiet --data a --out", tmp_path) == 0
        assert capsys.readouterr() == (expected, "")
    assert status("pde train --data a --out", tmp_path) == 0
    assert table_of(capsys.readouterr().out) == [{"epoch": "1", "seconds": "2.5", "rollout": "0.1235"}]


@pytest.mark.parametrize("command", ["bench --threads", "pde train --data a --out b --threads"])
def test_threads_that_torch_would_not_survive(command, refusal):
    line = refusal(command, 5000)
    assert "at most 1024" in line
    assert "found 5000; lower --threads" in line
