"""The transformers of the Monarch paper, from their public configurations, with random weights."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["MODELS", "MLPMixer", "Published", "bert", "gpt2", "training_loss", "vit"]


class MLPMixer(nn.Module):
    """MLP-Mixer (Tolstikhin et al. 2021, arXiv 2105.01601) for images of 224 × 224 in patches of 16 × 16.

    Args:
        width, layers: channels of a patch, and the number of blocks.
        token_hidden, channel_hidden: hidden widths of the two perceptrons of a block.

    Shapes:
        images (B, 3, 224, 224) → logits (B, 1000).
    """

    def __init__(self, width: int, layers: int, token_hidden: int, channel_hidden: int):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, stride=16)
        self.blocks = nn.ModuleList(_Mixing(width, token_hidden, channel_hidden) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 1000)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, 224, 224) → logits (B, 1000)."""
        x = self.patches(images).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


class _Mixing(nn.Module):
    """Residual perceptrons, one over the 196 patches and one over the channels."""

    def __init__(self, width: int, token_hidden: int, channel_hidden: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = nn.Sequential(nn.Linear(196, token_hidden), nn.GELU(), nn.Linear(token_hidden, 196))
        self.channels = nn.Sequential(
            nn.Linear(width, channel_hidden), nn.GELU(), nn.Linear(channel_hidden, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


def vit(width: int, layers: int, heads: int, hidden: int, *, classes: int = 1000, **more: Any) -> nn.Module:
    """A vision transformer (Dosovitskiy et al. 2021) of transformers, without dropout."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=hidden,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **more,
    )
    config.num_labels = classes
    return ViTForImageClassification(config)


def gpt2(width: int, layers: int, heads: int, *, vocabulary: int = 50257, positions: int = 1024) -> nn.Module:
    """GPT-2 (Radford et al. 2019) of transformers with its language head, without dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=positions,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
        use_cache=False,
    )
    return GPT2LMHeadModel(config)


def bert(
    width: int,
    layers: int,
    heads: int,
    *,
    vocabulary: int = 30522,
    positions: int = 512,
    masked: bool = False,
    initializer_range: float = 0.02,
) -> nn.Module:
    """BERT (Devlin et al. 2019) of transformers, without dropout, with its pooler and two classes.

    That is how it is fine-tuned on GLUE. ``masked``: the masked language model.
    """
    from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

    config = BertConfig(
        vocab_size=vocabulary,
        max_position_embeddings=positions,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=0,
        initializer_range=initializer_range,
    )
    return BertForMaskedLM(config) if masked else BertForSequenceClassification(config)


@dataclass(frozen=True)
class Published:
    """A model of the paper.

    ``build(layers=…)`` gives it at any depth; ``include`` are the layers that become Monarch. ``dense`` and
    ``monarch`` are the paper's millions of parameters, ``speed`` its training speed against dense. ``input``
    is what a training step is timed on: ("images", batch), or batch, length and vocabulary of "tokens" to
    continue or "sentences" to classify.
    """

    name: str
    build: Callable[..., nn.Module]
    layers: int
    include: tuple[str, ...]
    dense: float
    monarch: float
    speed: float
    input: tuple
    reason: str = ""

    def batch(self) -> tuple[Tensor, Tensor]:
        """Random input of a training step and its labels: of 1000 classes, of 2, or the next tokens."""
        kind, size, *rest = self.input
        if kind == "images":
            return torch.randn(size, 3, 224, 224), torch.randint(1000, (size,))
        length, vocabulary = rest
        tokens = torch.randint(vocabulary, (size, length + 1))
        return tokens[:, :-1], tokens[:, 1:] if kind == "tokens" else torch.randint(2, (size,))


def training_loss(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy."""
    output = model(inputs)
    logits = output if isinstance(output, Tensor) else output.logits
    return nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten())


IMAGES, GPT2_TOKENS, BERT_TOKENS = ("images", 4), ("tokens", 1, 512, 50257), ("sentences", 1, 512, 30522)
BERT_BASE_REASON = (
    "embeddings 23,837,184, layers 12 × 2,664,192, pooler as Monarch 295,680 and two classes 1,538 are "
    "56,104,706. The paper's 55 fits embeddings and layers alone, 55,807,488 without pooler and classes, or "
    "55,412,736 without positions and segments either, cut to whole millions. The latter gives the number of "
    "BERT-large, too. The paper does not say what it counted; its 109 and 335 of the dense models are "
    "everything."
)
BERT_LARGE_REASON = (
    "embeddings 31,782,912, layers 24 × 4,731,904, pooler 525,312 and two classes 2,050 are 145,875,970. "
    "Without pooler and classes 145,348,608, without positions and segments either 144,822,272: the paper's "
    "144, cut to whole millions."
)
MODELS = (
    Published(
        "ViT-S/16",
        partial(vit, 768, heads=8, hidden=2304, qkv_bias=False),
        8,
        ("vit.layers.*", "classifier"),
        48.8,
        19.6,
        1.9,
        IMAGES,
        "48.8 M are eight layers of width 768 with hidden width 2304 and no bias in q, k, v, not the 22 M of "
        "width 384 that ViT-S means today. Layers 8 × 2,366,208, patches, positions, class token and last "
        "norm 744,192 and head as Monarch 340,456 are 20,014,312. The paper's 19.6 fits only without the "
        "head: 19,673,856, cut to one digit. Of all choices (q, k, v together or separate, output of "
        "attention dense or Monarch, head dense, Monarch or absent) no other sum begins with 19.6. Its 33.0 "
        "of ViT-B/16 fits only with the head, as Monarch: 33,054,952, cut likewise, against 32,714,496 "
        "without. The paper's public code (HazyResearch/fly), where head and output of attention stay dense, "
        "makes 22.8 M and 37.0 M.",
    ),
    Published(
        "ViT-B/16",
        partial(vit, 768, heads=12, hidden=3072),
        12,
        ("vit.layers.*", "classifier"),
        86.6,
        33.0,
        2.0,
        IMAGES,
    ),
    Published(
        "Mixer-S/16",
        partial(MLPMixer, 512, token_hidden=256, channel_hidden=2048),
        8,
        ("blocks.*.channels.*",),
        18.5,
        7.0,
        1.7,
        IMAGES,
    ),
    Published(
        "Mixer-B/16",
        partial(MLPMixer, 768, token_hidden=384, channel_hidden=3072),
        12,
        ("blocks.*.channels.*",),
        59.9,
        20.9,
        1.9,
        IMAGES,
    ),
    Published(
        "GPT-2 small", partial(gpt2, 768, heads=12), 12, ("transformer.h.*",), 124, 72, 1.8, GPT2_TOKENS
    ),
    Published(
        "GPT-2 medium", partial(gpt2, 1024, heads=16), 24, ("transformer.h.*",), 355, 165, 2.0, GPT2_TOKENS
    ),
    Published(
        "BERT-base",
        partial(bert, 768, heads=12),
        12,
        ("bert.*",),
        109,
        55,
        1.5,
        BERT_TOKENS,
        BERT_BASE_REASON,
    ),
    Published(
        "BERT-large",
        partial(bert, 1024, heads=16),
        24,
        ("bert.*",),
        335,
        144,
        1.7,
        BERT_TOKENS,
        BERT_LARGE_REASON,
    ),
)
