"""Batches: their order in an epoch, the part of each that a process works on, and its random numbers.

All of it is a function of the seed, the epoch and the step alone. ``batch`` is what one optimiser step sees
in total, whatever the number of processes.
"""

from collections.abc import Callable, Iterator, Sized
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from monarch_sciml.errors import InputError
from monarch_sciml.training.distributed import Part, check_batch

__all__ = ["Batches", "Draw", "Order", "seeded_generator"]


def seeded_generator(*key: int) -> torch.Generator:
    """A generator that depends on the integers of ``key`` alone, such as (seed, step)."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))


class Draw(NamedTuple):
    """Random numbers for the samples at hand: a sample's are the same however its batch is split."""

    generator: torch.Generator
    mine: slice
    whole: int

    def normal(self, like: Tensor) -> Tensor:
        """Independent standard normal numbers in the shape of ``like``, whose first axis is the batch."""
        drawn = torch.randn((self.whole, *like.shape[1:]), generator=self.generator)
        return drawn[self.mine].to(like)

    def integers(self, stop: int) -> list[int]:
        """One uniform integer below ``stop`` for every sample."""
        return torch.randint(stop, (self.whole,), generator=self.generator)[self.mine].tolist()


class Batches:
    """``samples`` in batches of ``batch``, of which each process loads its part.

    Raises ``InputError`` where the processes cannot share a batch evenly.
    """

    def __init__(self, samples: Dataset[Any], batch: int, collate: Callable[[list[Any]], Any] | None = None):
        self.samples, self.batch, self.collate = samples, batch, collate or default_collate
        check_batch(batch)

    def __len__(self) -> int:
        return -(-len(cast(Sized, self.samples)) // self.batch)

    def part(self, index: int) -> Part:
        """Of this process in batch number ``index``."""
        return Part.of(min(self.batch, len(cast(Sized, self.samples)) - index * self.batch))

    def indices(self, order: list[int]) -> Iterator[list[int]]:
        """Of the samples of this process, batch by batch."""
        for index in range(len(self)):
            yield order[index * self.batch : (index + 1) * self.batch][self.part(index).mine]

    def __getitem__(self, indices: list[int]) -> Any:
        """The samples ``indices``, together; an ``InputError`` is returned, for all processes to hear of."""
        try:
            return self.collate([self.samples[index] for index in indices])
        except InputError as error:
            return error

    def in_order(self) -> Iterator[tuple[Part, Any]]:
        """Every batch once: this process's part, and its samples."""
        for index, indices in enumerate(self.indices(list(range(len(cast(Sized, self.samples)))))):
            yield self.part(index), self[indices]


class Order(Sampler[list[int]]):
    """A permutation that is a function of (seed, epoch), batch by batch; Lightning calls ``set_epoch``.

    ``skip`` batches are left out once, in the next epoch that begins.
    """

    def __init__(self, batches: Batches, seed: int):
        self.batches, self.seed, self.epoch, self.skip = batches, seed, 0, 0

    def set_epoch(self, epoch: int) -> None:
        """Counted from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        samples = len(cast(Sized, self.batches.samples))
        order = torch.randperm(samples, generator=seeded_generator(self.seed, self.epoch)).tolist()
        skip, self.skip = self.skip, 0
        yield from list(self.batches.indices(order))[skip:]

    def loader(self) -> DataLoader[Any]:
        """What Lightning iterates over."""
        data = cast(Dataset[Any], self.batches)
        return DataLoader(data, batch_size=None, sampler=self, collate_fn=_as_it_is)


def _as_it_is(batch: Any) -> Any:
    return batch
