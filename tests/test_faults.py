"""Nothing is lost when things go wrong: killed, out of room, not allowed to write."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small_disks

SCRIPTS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(SCRIPTS))
import faults  # noqa: E402

sys.path.remove(str(SCRIPTS))


# --------------------------------------------------------------------------------------------------- killed


def test_killed_commands_end_as_others_do(tmp_path):
    """A few kills of the quickest command; all commands and more kills: ``benchmarks/faults.py``."""
    campaign = faults.Campaign(tmp_path, seed=1)
    options = "--out {out} --volumes 4 --slices 1 --shape 64 64 --coils 4 --quiet"
    tally = campaign.run("mri simulate", 2, options)
    assert tally.failures == []
    assert tally.kills == 2
    assert tally.runs >= 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.h5", b"\x89HDF\r\n\x1a\n" + bytes(100)),
        ("a.json", b'{"a": 1'),
        ("a.safetensors", b"\xff\x00\x00\x00\x00\x00\x00\x00{}"),
        ("a.ckpt", b"PK\x03\x04"),
        ("a.csv", b"epoch,loss\n1,0.5\n2,0"),
        ("a.csv", b"epoch,loss\n1,0.5\n2\n"),
        ("a.png", b"\x89PNG\r\n\x1a\n"),
        ("a.nii.gz", b"\x1f\x8b\x08\x00"),
        ("a.md", b"| a | b"),
        ("a.unknown", b""),
    ],
)
def test_the_campaign_sees_damage(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Exception, match=r".*"):
        faults.check_whole(tmp_path)
    (tmp_path / name).rename(tmp_path / f"{name}.partial")
    assert faults.check_whole(tmp_path) == 0


@pytest.mark.parametrize(("second", "equal"), [("same", True), ("other", False)])
def test_the_campaign_sees_a_difference(tmp_path, monkeypatch, second, equal):
    """Of a stand-in for the command, whose second run writes the same or something else."""
    texts = iter(("same", second))
    script = "import pathlib, sys; p = pathlib.Path(sys.argv[1]); p.mkdir(); "
    script += "(p / 'a.json').write_text(sys.argv[2])"

    def start(self, command, options, out, resume=False):
        return subprocess.Popen([sys.executable, "-c", script, str(out), f'"{next(texts)}"'])

    monkeypatch.setattr(faults.Campaign, "start", start)
    campaign = faults.Campaign(tmp_path)
    tally = faults.Tally("pde generate")
    monkeypatch.setattr(campaign.random, "uniform", lambda *_: 60)
    monkeypatch.setattr(faults, "Tally", lambda command: tally)
    original = campaign.once

    def once(*arguments):
        status = original(*arguments)
        tally.kills += 1  # it ends before its kill: count one, lest it go on for ever
        return status

    monkeypatch.setattr(campaign, "once", once)
    campaign.run("pde generate", 1)
    assert tally.fine == equal
    if not equal:
        assert tally.failures == [f"a.json differ in {tmp_path / 'pde-generate-0'}"]


def test_the_campaign_records_damage_after_a_kill(tmp_path, monkeypatch):
    """Of a stand-in that leaves half a file under a final name, and would go on."""
    script = "import pathlib, sys, time; p = pathlib.Path(sys.argv[1]); p.mkdir(); "
    script += "(p / 'a.json').write_text(sys.argv[2]); time.sleep(float(sys.argv[3]))"
    runs = iter([('"whole"', "0"), ('"hal', "60")])

    def start(self, command, options, out, resume=False):
        process = subprocess.Popen([sys.executable, "-c", script, str(out), *next(runs)])
        while not (out / "a.json").exists() or not (out / "a.json").stat().st_size:
            time.sleep(0.01)
        return process

    monkeypatch.setattr(faults.Campaign, "start", start)
    campaign = faults.Campaign(tmp_path)
    monkeypatch.setattr(campaign.random, "uniform", lambda *_: 0.01)
    tally = campaign.run("pde generate", 2)
    assert tally.kills == 1
    assert not tally.fine
    (failure,) = tally.failures
    assert failure.startswith("after kill 1: JSONDecodeError")


# ---------------------------------------------------------------------------------------------- small disks


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("disks")
    small_disks.prepare(folder)
    return folder


@pytest.mark.parametrize("command", ["generate", "simulate", "reconstruct", "mri-evaluate", "pde-evaluate"])
def test_files_that_cannot_grow(command, data, tmp_path):
    """Trainings are tried on a real disk, below: their loggers write from threads."""
    limits = (0.0, 0.05) if "evaluate" in command else (0.0, 0.05, 0.15)
    small_disks.survives(
        command,
        data,
        tmp_path / "out",
        small_disks.file_size_limit,
        limits,
        faults.check_whole,
        faults.content,
    )


def may_mount() -> bool:
    """Whether a file system of one's own can be had, as in most containers and for most users on Linux."""
    if shutil.which("unshare") is None:
        return False
    tried = subprocess.run(
        ["unshare", "-rm", "sh", "-c", "mount -t tmpfs -o size=1m none /tmp"], capture_output=True
    )
    return tried.returncode == 0


@pytest.mark.skipif(not may_mount(), reason="no private file systems here")
def test_full_and_read_only_disks(tmp_path):
    """For real: a tmpfs that only this test sees."""
    for name in ("data", "disk"):
        (tmp_path / name).mkdir()
    inside = 'mount -t tmpfs -o size=8m none "$1" && shift && exec "$@"'
    script = [sys.executable, small_disks.__file__, tmp_path / "data", tmp_path / "disk", SCRIPTS]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", inside, "sh", tmp_path / "disk", *script],
        capture_output=True,
        text=True,
        env=variables,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line for line in done.stdout.splitlines() if line.endswith((" full", " read-only"))]
    assert len(lines) == 2 * len(small_disks.COMMANDS)
