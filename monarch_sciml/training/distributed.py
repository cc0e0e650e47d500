"""Several processes that train one model together: who they are, what they agree on, how they are started.

``torchrun`` and ``srun`` start processes and say in the environment which is which; ``launch`` does so on
one machine. Inside ``joined`` they can talk: ``together``, ``refuse``, ``agreed`` and ``total`` are called by
all of them, and do nothing special where there is only one.
"""

import contextlib
import multiprocessing
import os
import re
import signal
import socket
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from monarch_sciml.errors import InputError

__all__ = [
    "Part",
    "agreed",
    "check_batch",
    "joined",
    "launch",
    "local_device",
    "refuse",
    "together",
    "total",
    "world",
]

PATIENCE = 30  # seconds that the others have to end when one process failed
NOTHING = (None, "")


def world() -> tuple[int, int]:
    """(rank, size): this process's number, from 0, and how many there are; (0, 1) of a process on its own.

    Read from ``RANK`` and ``WORLD_SIZE`` of ``torchrun``, else, in a step of ``srun``, from ``SLURM_PROCID``
    and ``SLURM_STEP_NUM_TASKS`` (``SLURM_NTASKS`` is set outside of steps too, where only one process runs).
    Raises ``InputError`` where they make no sense.
    """
    for first, second in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")):
        if first in os.environ and second in os.environ:
            rank, size = os.environ[first], os.environ[second]
            if not (rank.isdecimal() and size.isdecimal() and int(rank) < int(size)):
                raise InputError(
                    f"{first} below {second}", f"{rank} and {size}", "unset them, or use torchrun"
                )
            return int(rank), int(size)
    return 0, 1


def local_device(device: str) -> torch.device:
    """For "cuda" the GPU of this process's number on this machine, shared where there are fewer.

    For work that needs no communication; ``joined`` is stricter.
    """
    if device != "cuda":
        return torch.device(device)
    local = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or "0"
    return torch.device("cuda", int(local) % max(1, torch.cuda.device_count()))


def check_batch(batch: int) -> None:
    """Raises ``InputError`` for a batch that the processes cannot share evenly."""
    size = world()[1]
    if batch % size:
        expected = f"a batch that {size} processes can share, a multiple of {size}"
        raise InputError(expected, f"batch={batch}", "change --batch, or start fewer processes")


class Part(NamedTuple):
    """What of a batch of ``whole`` samples is this process's: ``mine``, of which ``counted`` count.

    Where there are fewer samples than processes, some work on a sample that does not count, so that all take
    part in every step.
    """

    mine: slice
    counted: int
    whole: int

    @staticmethod
    def of(whole: int) -> "Part":
        """The part of this process: contiguous, as even as can be."""
        rank, size = world()
        first, stop = whole * rank // size, whole * (rank + 1) // size
        if first == stop:
            return Part(slice(0, 1), 0, whole)
        return Part(slice(first, stop), stop - first, whole)


@contextlib.contextmanager
def joined(device: str) -> Iterator[None]:
    """The processes find each other on entry and part on exit; ``device`` is "auto", "cpu" or "cuda".

    Nothing happens to a process on its own, or one that is inside already. On CUDA each takes the GPU of its
    number on this machine. Raises ``InputError`` where there are too few.
    """
    rank, size = world()
    if size == 1 or dist.is_initialized():
        yield
        return
    if "RANK" not in os.environ:
        _as_torchrun()
    cuda = device != "cpu" and torch.cuda.is_available()
    if cuda:
        local, here = int(os.environ["LOCAL_RANK"]), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        if torch.cuda.device_count() < here:
            expected, found = (
                f"{here} GPUs for {here} processes",
                f"{torch.cuda.device_count()} on this machine",
            )
            raise InputError(
                expected, found, "start fewer processes, let each see all GPUs, or use --device cpu"
            )
        torch.cuda.set_device(local)
    # control messages always go over the CPU, gradients where they are
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", rank=rank, world_size=size)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _as_torchrun() -> None:
    """Say in torchrun's words what srun says."""
    rank, size = world()
    step = os.environ
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": step["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": re.split(r"[(,]", step["SLURM_STEP_TASKS_PER_NODE"])[0],
        "GROUP_RANK": step["SLURM_NODEID"],
        # the host of process 0, and a port that other jobs on it hardly take
        "MASTER_ADDR": step.get("MASTER_ADDR") or _first_host(step["SLURM_STEP_NODELIST"]),
        "MASTER_PORT": step.get("MASTER_PORT") or str(15000 + int(step["SLURM_JOB_ID"]) % 4000),
    }


def _first_host(hosts: str) -> str:
    """``gpu[03-05,9],cpu1`` → ``gpu03``."""
    found = re.match(r"([^,\[]+)(?:\[([^\],-]+))?", hosts)
    return "".join(part or "" for part in found.groups()) if found else hosts


def together(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """``function(*arguments)``, on every process; what one of them refuses is refused by all.

    Raises:
        InputError: on rank 0, what the first that failed raised.
        SystemExit: on the others, in silence, so that one line says it.
    """
    result, error = None, None
    try:
        result = function(*arguments, **options)
    except InputError as refusal:
        error = refusal
    refuse(error)
    return result


def refuse(error: InputError | None) -> None:
    """If any process comes with an ``error``, all end as in ``together``."""
    rank, size = world()
    if size == 1 or not dist.is_initialized():
        if error is not None:
            raise error
        return
    errors: list[tuple[str, ...] | None] = [None] * size
    dist.all_gather_object(errors, None if error is None else error.args)
    first = next((found for found in errors if found is not None), None)
    if first is not None:
        if rank == 0:
            raise InputError(*first)
        raise SystemExit(2)


def agreed(*flags: bool) -> tuple[bool, ...]:
    """Each flag: whether any process raises it."""
    if world()[1] == 1 or not dist.is_initialized():
        return flags
    found = torch.tensor(flags, dtype=torch.uint8)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return tuple(bool(flag) for flag in found)


def total(values: Tensor) -> Tensor:
    """The sum over all processes, on the CPU."""
    values = values.detach().cpu().clone()
    if world()[1] > 1 and dist.is_initialized():
        dist.all_reduce(values)
    return values


def launch(function: Callable[[Any], Any], argument: Any, processes: int) -> Any:
    """``function(argument)`` in so many new processes on this machine, which find each other's ``world``.

    Returns what rank 0 returns. A script that calls this needs ``if __name__ == "__main__":``, as always when
    Python starts processes. Ctrl-C and SIGTERM are passed on, and waited for.

    Raises:
        InputError: what rank 0 raised, or a process that died.
        KeyboardInterrupt: an interrupted one.
    """
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    workers = [
        context.Process(target=_work, args=(function, argument, rank, processes, port, sender))
        for rank in range(processes)
    ]
    with _passing_on(workers) as asked:
        for worker in workers:
            worker.start()
        sender.close()
        kind, content = _wait(workers, receiver)
    if kind == "done" and not any(worker.exitcode for worker in workers):
        return content
    if kind == "refused":
        raise InputError(*content)
    if kind == "interrupted":
        raise KeyboardInterrupt(content)
    if asked:  # before rank 0 listened, or twice
        raise KeyboardInterrupt("interrupted; continue with --resume")
    failed = next(
        (f"process {i} with status {w.exitcode}" for i, w in enumerate(workers) if w.exitcode), "one"
    )
    remedy = "see above why, if it said so; a training continues with --resume"
    raise InputError("all processes to end well", f"the end of {failed}", remedy)


def _work(function: Any, argument: Any, rank: int, size: int, port: int, sender: Any) -> None:
    here = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": size,
        "LOCAL_WORLD_SIZE": size,
        "MASTER_PORT": port,
    }
    os.environ |= {name: str(value) for name, value in here.items()} | {"MASTER_ADDR": "127.0.0.1"}
    torch.set_num_threads(max(1, torch.get_num_threads() // size))
    if rank:
        sender.close()  # so that the other end sees when rank 0 dies
    answer, status = NOTHING, 0
    try:
        answer = ("done", function(argument))
    except InputError as error:
        answer, status = ("refused", error.args), 2
    except KeyboardInterrupt as stop:
        answer, status = ("interrupted", str(stop)), 130
    if rank == 0:
        sender.send(answer)
    raise SystemExit(status)


def _wait(workers: list[Any], receiver: Any) -> tuple[Any, Any]:
    """What rank 0 says, once all have ended; those that outlive a failed one by long are ended."""
    answer, listening, patience = NOTHING, [receiver], None
    while (running := [w for w in workers if w.is_alive()]) or (listening and receiver.poll()):
        ended = wait([*listening, *(worker.sentinel for worker in running)], patience)
        if receiver in ended:  # read at once: a pipe holds little, and whoever fills it waits
            listening = []
            with contextlib.suppress(EOFError, OSError):  # rank 0 died without a word, or in the middle of it
                answer = receiver.recv()
        elif not ended:
            for worker in running:
                worker.kill()
        if any(worker.exitcode for worker in workers):
            patience = PATIENCE
    return answer


@contextlib.contextmanager
def _passing_on(workers: list[Any]) -> Iterator[list[int]]:
    """SIGTERM and the first Ctrl-C reach the workers as SIGTERM; a second Ctrl-C kills them.

    Yields the signals that came.
    """
    asked: list[int] = []

    def pass_on(number: int, frame: Any) -> None:
        asked.append(number)
        for worker in workers:
            if worker.is_alive():
                worker.kill() if asked.count(signal.SIGINT) > 1 else worker.terminate()

    kinds = (signal.SIGINT, signal.SIGTERM)
    try:
        before = [signal.signal(kind, pass_on) for kind in kinds]
    except ValueError:  # not in the main thread, where signals cannot be handled
        yield asked
        return
    try:
        yield asked
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)
