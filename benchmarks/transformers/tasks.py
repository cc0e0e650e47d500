"""Three small trainings: digits, the next byte of source text, masked bytes of it. No download."""

import hashlib
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from models import bert, gpt2, vit
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["TASKS", "Task", "source_text"]

RATES = (3.5e-4, 5e-4, 7e-4, 1e-3, 1.4e-3, 2e-3, 2.8e-3)
MASK = 0  # a byte that no source file contains


@dataclass(frozen=True)
class Task:
    """``build`` makes the dense model, ``include`` names its layers that become Monarch.

    ``draw(generator)`` gives a training batch, ``held_out()`` the fixed batches of the evaluation, each
    inputs and targets; a target of −100 does not count. ``predict(model, inputs)`` gives logits,
    classes last. ``rates`` are the learning rates to try, for the part ``trial`` of the steps. Reverse
    sparsification goes on densely from the part ``switch`` of the steps; fine-tuning takes the part
    ``tuning`` of them. Where dense learns more in a step, Monarch is also trained for ``longer`` times as
    many.
    """

    name: str
    build: Callable[[], nn.Module]
    include: tuple[str, ...]
    steps: int
    rates: tuple[float, ...]
    draw: Callable[[torch.Generator], tuple[Tensor, Tensor]]
    held_out: Callable[[], list[tuple[Tensor, Tensor]]]
    predict: Callable[[nn.Module, Tensor], Tensor]
    trial: float = 0.25
    switch: float = 0.8
    tuning: float = 0.25
    longer: float = 1.0

    def loss(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy in nats."""
        return F.cross_entropy(
            self.predict(model, inputs).flatten(0, -2), targets.flatten(), ignore_index=-100
        )

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Cross entropy and share of right answers, over all held-out targets."""
        model.eval()
        pairs = [(self.predict(model, x).flatten(0, -2), y.flatten()) for x, y in self.held_out()]
        model.train()
        logits, targets = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        logits, targets = logits[targets >= 0], targets[targets >= 0]
        right = (logits.argmax(-1) == targets).double().mean()
        return {"loss": float(F.cross_entropy(logits, targets)), "accuracy": float(right)}


@cache
def digits() -> tuple[Tensor, Tensor]:
    """The 1797 images of scikit-learn's digits (N, 1, 8, 8), scaled and shuffled, and their labels."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
    return images[order], torch.tensor(labels)[order]


HELD_OUT_DIGITS = 597


def draw_digits(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """128 of the 1200 training images, each moved by up to one pixel on its own."""
    images, labels = digits()
    chosen = torch.randint(HELD_OUT_DIGITS, len(labels), (128,), generator=generator)
    padded = F.pad(images[chosen], (1, 1, 1, 1), value=-1.0)
    top, left = torch.randint(3, (2, len(chosen), 1), generator=generator) + torch.arange(8)
    each = torch.arange(len(chosen))[:, None, None]
    return padded[each, :, top[:, :, None], left[:, None, :]].permute(0, 3, 1, 2), labels[chosen]


def held_out_digits() -> list[tuple[Tensor, Tensor]]:
    """The first 597 images."""
    images, labels = digits()
    return [(images[:HELD_OUT_DIGITS], labels[:HELD_OUT_DIGITS])]


@cache
def source_text() -> tuple[Tensor, Tensor, str]:
    """Top-level modules of the standard library: training, held-out (every tenth file), SHA-256 of both."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    parts = [
        b"".join(f.read_bytes() for i, f in enumerate(files) if (i % 10 == 9) is last)
        for last in (False, True)
    ]
    training, held_out = (torch.frombuffer(bytearray(part), dtype=torch.uint8) for part in parts)
    return training, held_out, hashlib.sha256(b"".join(parts)).hexdigest()


def sequences(text: Tensor, starts: Tensor, length: int) -> Tensor:
    """Pieces of ``length`` + 1 bytes (N, length + 1)."""
    return text[starts[:, None] + torch.arange(length + 1)].long()


def next_byte(x: Tensor, _: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs and the bytes that follow them."""
    return x[:, :-1], x[:, 1:]


def masked(x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """15 % of the bytes are hidden and are the targets."""
    x = x[:, :-1]
    hidden = torch.rand(x.shape, generator=generator) < 0.15
    return x.masked_fill(hidden, MASK), x.masked_fill(~hidden, -100)


def draw_text(kind: Callable, length: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """``size`` bytes, in sequences from anywhere in the training text."""
    text = source_text()[0]
    starts = torch.randint(len(text) - length, (size // length,), generator=generator)
    return kind(sequences(text, starts, length), generator)


@cache
def held_out_text(kind: Callable, length: int, size: int) -> list[tuple[Tensor, Tensor]]:
    """``size`` bytes, in sequences spread evenly over the held-out text, in eight batches."""
    text = source_text()[1]
    starts = torch.linspace(0, len(text) - length - 1, size // length, dtype=torch.float64).long()
    generator = torch.Generator().manual_seed(0)
    return [kind(sequences(text, part, length), generator) for part in starts.chunk(8)]


def predict_images(model: nn.Module, x: Tensor) -> Tensor:
    """Logits of the classes."""
    return model(x).logits


def predict_text(model: nn.Module, x: Tensor) -> Tensor:
    """Logits of every byte."""
    return model(input_ids=x).logits


def byte_gpt2() -> nn.Module:
    """Two layers of width 384, over 128 bytes."""
    return gpt2(384, 2, 6, vocabulary=256, positions=128)


def byte_bert() -> nn.Module:
    """Two layers of width 256, over 8 bytes.

    It learns nothing but how frequent bytes are until its attention finds the neighbours of a hidden byte.
    That takes 100 steps of 1024 bytes here, 200 over 16 bytes, and more than 300 of 512 over 32. Positions
    that start larger than the embeddings of bytes delay it, also as sines.
    """
    return bert(256, 2, 4, vocabulary=256, positions=8, masked=True, initializer_range=0.05)


def tiny_vit() -> nn.Module:
    """Two layers of width 256, over 4 patches of 4 × 4."""
    sizes = {"image_size": 8, "patch_size": 4, "num_channels": 1}
    return vit(256, 2, 4, 1024, classes=10, initializer_range=0.05, **sizes)


TASKS = (
    Task(
        "ViT, digits",
        tiny_vit,
        ("vit.layers.*",),
        800,
        RATES[1:],
        draw_digits,
        held_out_digits,
        predict_images,
        switch=0.7,
        longer=1.25,
    ),
    Task(
        "GPT-2, next byte",
        byte_gpt2,
        ("transformer.h.*",),
        400,
        RATES[:5],
        partial(draw_text, next_byte, 128, 512),
        partial(held_out_text, next_byte, 128, 8192),
        predict_text,
    ),
    Task(
        "BERT, masked bytes",
        byte_bert,
        ("bert.encoder.*",),
        600,
        RATES[2:6],
        partial(draw_text, masked, 8, 1024),
        partial(held_out_text, masked, 8, 16384),
        predict_text,
        trial=1.0,
        switch=0.7,
        tuning=0.5,
        longer=1.25,
    ),
)
