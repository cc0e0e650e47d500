"""Every command that writes, on a disk that is full or cannot be written, and again when it can."""

import contextlib
import io
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from monarch_sciml.cli import main

__all__ = ["COMMANDS", "file_size_limit", "prepare", "room_on", "run", "survives"]

COLUMNS = "--mask random --accelerations 2 --center-fractions 0.3 --maps low-resolution"
COMMANDS = {
    "generate": "pde generate --out {out}/flow.h5 --samples 4 --resolution 64 --viscosity 1e-2 --end-time 1 "
    "--record-interval 0.5 --batch 1 --quiet",
    "simulate": "mri simulate --out {out} --volumes 3 --slices 2 --shape 48 64 --coils 3 --quiet",
    "reconstruct": "mri reconstruct --files {data}/scans/sim_0000.h5 {data}/scans/sim_0001.h5 --out {out} "
    "--method zero-filled --png --nifti --quiet " + COLUMNS,
    "mri-evaluate": "mri evaluate --target {data}/scans --prediction {data}/images --out {out}",
    "pde-evaluate": "pde evaluate --runs {data}/run --out {out}",
    "train": "pde train --data {data}/flow.h5 --out {out} --quiet {tiny}",
}
TINY = "--modes 4 --width 4 --layers 2 --n-train 4 --n-test 2 --epochs 2 --batch 4 --device cpu --model fno"


def run(command: str, data: Path, out: Path, *more: str) -> tuple[int, str]:
    """Exit status and what was said on stderr."""
    said = io.StringIO()
    words = COMMANDS[command].format(data=data, out=out, tiny=TINY).split()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        try:
            main([*words, *more])
        except SystemExit as end:
            return int(end.code or 0), said.getvalue()
    return 0, said.getvalue()


def prepare(data: Path) -> None:
    """What the commands read, and of each the result as it should be, in ``data/whole``."""
    flow = "--samples 6 --resolution 16 --viscosity 1e-2 --end-time 2 --record-interval 0.5 --quiet"
    main(["pde", "generate", "--out", str(data / "flow.h5"), *flow.split()])
    scans = "--volumes 2 --slices 2 --shape 48 64 --coils 3 --quiet"
    main(["mri", "simulate", "--out", str(data / "scans"), *scans.split()])
    for command, out in {"reconstruct": data / "images", "train": data / "run"}.items():
        assert run(command, data, out) == (0, "")
    for command in COMMANDS:
        assert run(command, data, data / "whole" / command) == (0, ""), command


def survives(
    command: str,
    data: Path,
    out: Path,
    little_room: Callable[[int], AbstractContextManager[None]],
    rooms: tuple[float, ...],
    check_whole: Callable[[Path], int],
    content: Callable[[Path], dict[str, object]],
) -> None:
    """With room for a part of the result: one line, status 2, nothing cut off; with room: the result."""
    whole = data / "whole" / command
    size = sum(path.stat().st_size for path in whole.rglob("*") if path.is_file())
    for share in rooms:
        shutil.rmtree(out, ignore_errors=True)
        resume = ["--resume"] if command == "train" else []
        with little_room(int(share * size)):
            status, said = run(command, data, out, *resume)
        assert status == 2, (command, share, status, said)
        assert said.startswith("monarch-sciml: expected "), (command, share, said)
        assert said.count("\n") == 1, said
        before = {p: p.read_bytes() for p in out.rglob("*.h5") if p.is_file()}
        check_whole(out)
        status, said = run(command, data, out, *resume)
        assert (status, said) == (0, ""), (command, share, said)
        assert content(out) == content(whole), (command, share)
        assert not list(out.rglob("*.partial*")), (command, share)
        assert all(p.read_bytes() == old for p, old in before.items()), (command, share)


@contextmanager
def file_size_limit(largest: int) -> Iterator[None]:
    """Files end at ``largest`` bytes: writing more fails, as on a full disk."""
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, old)


def room_on(disk: Path) -> Callable[[int], AbstractContextManager[None]]:
    """Fill the disk, but for so many bytes."""

    @contextmanager
    def little_room(room: int) -> Iterator[None]:
        about = os.statvfs(disk)
        filler, size = disk / "filler", about.f_bavail * about.f_frsize - room
        with filler.open("wb") as stream:
            os.posix_fallocate(stream.fileno(), 0, size)
        try:
            yield
        finally:
            filler.unlink()

    return little_room


def main_on_a_small_disk(data: Path, disk: Path, scripts: Path) -> None:
    """All commands on ``disk``, a file system of its own, when it is full, then when it is read-only."""
    sys.path.insert(0, str(scripts))
    from faults import check_whole, content

    prepare(data)
    for command in COMMANDS:
        rooms = (0.0, 0.5) if "evaluate" in command or command == "train" else (0.0, 0.2, 0.6, 0.9)
        survives(command, data, disk / command, room_on(disk), rooms, check_whole, content)
        print(command, "full", flush=True)
    assert os.system(f"mount -o remount,ro {disk}") == 0
    for command in COMMANDS:
        before = content(disk / command)
        status, said = run(command, data, disk / f"new-{command}")
        assert status == 2, (command, said)
        assert "Read-only file system" in said, said
        assert said.count("\n") == 1, said
        if command == "mri-evaluate":  # where there is something already
            status, said = run(command, data, disk / command)
            assert (status, said.count("\n")) == (2, 1), said
        assert content(disk / command) == before
        print(command, "read-only", flush=True)


if __name__ == "__main__":
    main_on_a_small_disk(*map(Path, sys.argv[1:]))
