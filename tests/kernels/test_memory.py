"""Memory of large results is used again, never while anybody can see it."""

import copy
import io
import sys
import threading
import time
from contextlib import nullcontext

import pytest
import torch

from monarch_sciml.kernels import native
from monarch_sciml.kernels.native import memory
from monarch_sciml.nn import MonarchSpectralConv

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is kept on Linux alone")
LIKE = torch.zeros(1)
SHAPE = (3, memory.LEAST // 8)  # 1.5 times the least size in float32


@pytest.fixture(autouse=True)
def nothing_idle(monkeypatch):
    """A pool of its own."""
    monkeypatch.setattr(memory, "_idle", type(memory._idle)(memory._idle.default_factory))


def idle() -> int:
    return sum(map(len, memory._idle.values()))


def test_released_memory_is_used_again():
    first = memory.empty(SHAPE, LIKE)
    place = first.data_ptr()
    assert first.shape == SHAPE
    assert first.dtype == torch.float32
    assert first.is_contiguous()
    del first
    assert idle() == 1
    assert memory.empty(SHAPE, LIKE).data_ptr() == place


@pytest.mark.parametrize("seen", [lambda t: t[1:, 5], lambda t: t.detach(), lambda t: t.numpy()])
def test_not_while_somebody_sees_it(seen):
    first = memory.empty(SHAPE, LIKE).fill_(1)
    view = seen(first)
    del first
    assert idle() == 0
    memory.empty(SHAPE, LIKE).fill_(2)
    assert (view == 1).all()
    del view
    assert idle() == 2


def test_another_size_is_another_block():
    a, b = memory.empty(SHAPE, LIKE), memory.empty((2 * SHAPE[0], SHAPE[1]), LIKE)
    places = a.data_ptr(), b.data_ptr()
    del a, b
    again = memory.empty((2 * SHAPE[0], SHAPE[1]), LIKE), memory.empty(SHAPE, LIKE)
    assert tuple(t.data_ptr() for t in again) == places[::-1]


def test_what_nobody_takes_is_given_back(monkeypatch):
    kept = [memory.empty(SHAPE, LIKE) for _ in range(3)]
    del kept
    assert idle() == 3
    later = time.monotonic() + memory.SECONDS + 1
    monkeypatch.setattr(memory.time, "monotonic", lambda: later)
    last = memory.empty(SHAPE, LIKE)
    assert idle() == 0
    del last
    assert idle() == 1


@pytest.mark.parametrize("shape", [(2 * SHAPE[0], SHAPE[1]), (3,)], ids=["larger", "small"])
def test_another_size_gives_back_too(shape, monkeypatch):
    memory.empty(SHAPE, LIKE)  # released at once
    assert idle() == 1
    later = time.monotonic() + memory.SECONDS + 1
    monkeypatch.setattr(memory.time, "monotonic", lambda: later)
    other = memory.empty(shape, LIKE)
    assert idle() == 0
    assert other.shape == shape


def test_small_fake_and_counted_memory_is_torchs():
    memory.empty((10,), LIKE)
    with torch._subclasses.FakeTensorMode():
        fake = memory.empty(SHAPE, torch.zeros(1))
    assert type(fake) is not torch.Tensor
    assert fake.shape == SHAPE
    with memory.fresh():
        memory.empty(SHAPE, LIKE)
    assert idle() == 0


def test_a_result_can_be_copied_and_saved():
    t = memory.empty(SHAPE, LIKE).normal_()
    stream = io.BytesIO()
    torch.save(t, stream)
    stream.seek(0)
    assert torch.equal(torch.load(stream), t)
    assert torch.equal(copy.deepcopy(t), t)
    assert torch.equal(t.share_memory_(), t)


def test_threads_never_share():
    errors = []

    def work(value: float) -> None:
        for _ in range(30):
            t = memory.empty(SHAPE, LIKE).fill_(value)
            if not (t[0, ::1000] == value).all():
                errors.append(value)

    threads = [threading.Thread(target=work, args=(float(i),)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert 1 <= idle() <= 8


@pytest.mark.skipif(not native.available(), reason="there is no C++ compiler")
def test_training_is_the_same_as_on_fresh_memory():
    torch.manual_seed(0)
    x = torch.randn(2, 16, 384, 384)
    ends = []
    for kept in (True, False):
        torch.manual_seed(1)
        layer = MonarchSpectralConv(16, 16, (8, 8), grid=(384, 384))
        optimiser = torch.optim.SGD(layer.parameters(), lr=0.1)
        for _ in range(3):
            with nullcontext() if kept else memory.fresh():
                y = layer(layer(x))
                y.square().mean().backward()
            optimiser.step()
            optimiser.zero_grad()
        ends.append(y.detach().clone())
        assert idle() > 0
    assert torch.equal(*ends)
