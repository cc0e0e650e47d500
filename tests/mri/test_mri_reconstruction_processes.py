"""Several real processes share the files of a reconstruction; one that fails waits for the others."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from kspace_files import fastmri, noise

from monarch_sciml.mri.header import write_header

S, C, H, W = 6, 4, 96, 80
K = noise(S, C, H, W)
HEADER = write_header((H, W, S), (H, W))
SAMPLING = "--accelerations 2 --center-fractions 0.3"
OPTIONS = f"--method cg-sense --iterations 200 --maps low-resolution {SAMPLING} --quiet"


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def torchrun(out: Path, *files: Path) -> subprocess.CompletedProcess[str]:
    """``mri reconstruct`` in two processes."""
    launcher = ["torch.distributed.run", "--nproc-per-node", "2", "--master-port", free_port()]
    options = [*OPTIONS.split(), "--out", str(out), "--files", *map(str, files)]
    return subprocess.run(
        [sys.executable, "-m", *launcher, "-m", "monarch_sciml", "mri", "reconstruct", *options],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def said(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if line.startswith("monarch-sciml:")]


@pytest.mark.parametrize("bad", [0, 1], ids=["the first fails", "the second fails"])
def test_a_process_whose_file_fails_at_once_waits_for_the_slow_one(tmp_path, bad):
    slow, broken = fastmri(tmp_path / "slow.h5", K, HEADER), tmp_path / "bad.h5"
    broken.write_text("no k-space")
    done = torchrun(tmp_path / "out", *([broken, slow] if bad == 0 else [slow, broken]))
    (line,) = said(done)
    assert "expected 2 files that can be reconstructed; found 1 that cannot: bad.h5 (expected" in line
    assert "exitcode  : 2" in done.stderr  # what torchrun was told; its own status is 1
    with h5py.File(tmp_path / "out" / "slow.h5") as file:
        assert file["reconstruction"].shape == (S, H, W)
    assert [r["file"] for r in json.loads((tmp_path / "out" / "report.json").read_text())] == ["slow.h5"]
    assert "slow.h5" in (tmp_path / "out" / "table.md").read_text(encoding="utf-8")


def test_two_processes_do_what_one_does_and_one_of_them_says_it(tmp_path):
    files = [fastmri(tmp_path / f"{name}.h5", K[i : i + 1], HEADER) for i, name in enumerate("abc")]
    done = torchrun(tmp_path / "out", *files)
    assert (done.returncode, said(done)) == (0, [])
    assert [done.stdout.count(path.name) for path in files] == [1, 1, 1]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.h5")) == ["a.h5", "b.h5", "c.h5"]
    images = [h5py.File(tmp_path / "out" / path.name)["reconstruction"][()] for path in files]
    assert all(np.isfinite(image).all() and image.any() for image in images)


def test_a_mistake_before_any_work_is_said_once(tmp_path):
    path = fastmri(tmp_path / "a.h5", K[:1], HEADER)
    done = torchrun(tmp_path, path)
    (line,) = said(done)
    assert "another folder than that of the data" in line
