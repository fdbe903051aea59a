"""A large vision-language model and a benchmark, both tiny and made on the spot, that a YAML config can name.

``fakes.tiny.TinyLVLM`` has random but fixed frozen weights: like those of a real backbone they are not in checkpoints, so every build
must give the same. ``fakes.tiny.TinyCIR`` has 40 pictures (5 shapes in 8 colours).
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image, ImageDraw
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

from cir_lightning.backbones.base import Backbone, VisionTower
from cir_lightning.storage import create_folder
from data_modules.base import CIRDataModule
from data_modules.images import content_hash
from data_modules.records import Benchmark, EvaluationSet, Picture, Query, Triplet

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cir_lightning.backbones.lora import LoRA

COLOURS = ("red", "green", "blue", "yellow", "black", "pink", "brown", "cyan")
SHAPES = ("circle", "square", "triangle", "cross", "bar")
WORDS = (*COLOURS, *SHAPES, "but", "as", "a", "Edit", "Picture", "in")
SIDE = 48


def tiny_tokenizer(words: Iterable[str] = WORDS, *, bos: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level BPE that knows some words, by default the benchmark's, with and without the space before, as one token each."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=500 if words is WORDS else 10_000, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([word for w in words for word in (w, f" {w}")] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **({"bos_token": "<s>"} if bos else {}))


class TinyTower(VisionTower):
    """Average-pooled pixels of each quadrant through a fixed random projection.

    Attributes:
        seen: pictures that went through it, since it was made.
    """

    image_size, patches, width, key = 32, 4, 24, "tiny"

    def __init__(self) -> None:
        super().__init__()
        weight = torch.randn(12, self.width, generator=torch.Generator().manual_seed(5))
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.seen = 0

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, 32, 32) uint8 -> (B, 4, 24)."""
        self.seen += len(pixels)
        pooled = F.adaptive_avg_pool2d(pixels.float() / 127.5 - 1, 4)
        quadrants = F.pixel_unshuffle(pooled, 2).flatten(2).transpose(1, 2)
        return self.rounded(quadrants @ self.weight)


class TinyLVLM(Backbone):
    """:class:`TinyTower` and a random Llama of hidden size 64 with 2 layers and 4 heads.

    Args:
        lora: the adapters; None for a frozen LLM.
        gradient_checkpointing: recompute activations in the backward pass.
        bos: whether the tokenizer has a beginning-of-sequence token.
    """

    def __init__(self, lora: LoRA | None = None, *, gradient_checkpointing: bool = False, bos: bool = True) -> None:
        super().__init__()
        self.lora, self.gradient_checkpointing, self.bos = lora, gradient_checkpointing, bos

    def build(self) -> None:
        """Make the parts; the frozen weights are always the same."""
        self.tower, self.tokenizer = TinyTower(), tiny_tokenizer(bos=self.bos)
        config = LlamaConfig(
            vocab_size=512,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=256,
            initializer_range=0.1,
            use_cache=False,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            self.llm = LlamaModel(config).requires_grad_(requires_grad=False)
        if self.gradient_checkpointing:
            self.llm.gradient_checkpointing_enable({"use_reentrant": False})
        if self.lora is not None:
            self.lora.add_to(self.llm)


def draw(path: Path, colour: str, shape: str) -> None:
    """Write a picture of a coloured shape."""
    image = Image.new("RGB", (SIDE, SIDE), "white")
    pen = ImageDraw.Draw(image)
    match shape:
        case "circle":
            pen.ellipse((6, 6, 42, 42), fill=colour)
        case "square":
            pen.rectangle((4, 4, 30, 30), fill=colour)
        case "triangle":
            pen.polygon([(24, 4), (4, 44), (44, 44)], fill=colour)
        case "cross":
            pen.rectangle((20, 2, 28, 46), fill=colour)
            pen.rectangle((2, 20, 46, 28), fill=colour)
        case _:
            pen.rectangle((0, 34, 48, 46), fill=colour)
    image.save(path)


def name_of(colour: str, shape: str) -> str:
    """Name of a picture, which is also its title."""
    return f"{colour} {shape}"


class TinyCIR(CIRDataModule):
    """Change the colour ("but red") or the shape ("as a circle") of a picture.

    In val and in test there are two evaluation sets: ``tiny/colour``, one target and as members all pictures of the shape;
    ``tiny/shape``, two targets (the second in the next colour) and five members.

    Args:
        root: folder that the pictures are drawn into.
        titles: whether pictures have titles.
        recall_at: the K of ``R@K``.
        val_is_train: score on the training triplets in val, to see overfitting.
        others: see :class:`~data_modules.base.CIRDataModule`.
    """

    def __init__(
        self,
        root: str,
        *,
        titles: bool = True,
        recall_at: tuple[int, ...] = (1, 5, 10),
        val_is_train: bool = False,
        batch_size: int = 24,
        eval_batch_size: int = 24,
        same_group: float = 0.5,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, same_group=same_group, seed=seed)
        self.root, self.titles, self.recall_at, self.val_is_train = Path(root), titles, recall_at, val_is_train

    def read(self) -> Benchmark:
        """All records."""
        folder = create_folder(self.root / "pictures", self._draw_all)
        pictures = []
        for colour, shape in itertools.product(COLOURS, SHAPES):
            path = folder / f"{colour}-{shape}.png"
            name = name_of(colour, shape)
            pictures.append(Picture(name, path, content_hash(path), name if self.titles else ""))
        colour_changes = [(s, a, b) for s in SHAPES for a in COLOURS for b in COLOURS if a != b]
        shape_changes = [(c, a, b) for c in COLOURS for a in SHAPES for b in SHAPES if a != b]
        triplets = [
            *(Triplet(name_of(a, s), f"but {b}", name_of(b, s), s) for s, a, b in colour_changes[::4]),
            *(Triplet(name_of(c, a), f"as a {b}", name_of(c, b), c) for c, a, b in shape_changes[::3]),
        ]
        val = self._sets(colour_changes[1::8], shape_changes[1::6])
        if self.val_is_train:
            val = self._sets(colour_changes[::4], shape_changes[::3])
        return Benchmark(tuple(pictures), tuple(triplets), val, self._sets(colour_changes[2::8], shape_changes[2::6]))

    @staticmethod
    def _draw_all(folder: Path) -> None:
        for colour, shape in itertools.product(COLOURS, SHAPES):
            draw(folder / f"{colour}-{shape}.png", colour, shape)

    def _sets(self, colours: list[tuple[str, str, str]], shapes: list[tuple[str, str, str]]) -> tuple[EvaluationSet, ...]:
        gallery = tuple(name_of(c, s) for c, s in itertools.product(COLOURS, SHAPES))
        by_colour = [
            Query(f"c{at}", name_of(a, s), f"but {b}", (name_of(b, s),), tuple(name_of(c, s) for c in COLOURS))
            for at, (s, a, b) in enumerate(colours)
        ]
        by_shape = []
        for at, (c, a, b) in enumerate(shapes):
            second = COLOURS[(COLOURS.index(c) + 1) % len(COLOURS)]
            targets = (name_of(c, b), name_of(second, b))
            by_shape.append(Query(f"s{at}", name_of(c, a), f"as a {b}", targets, tuple(name_of(c, s) for s in SHAPES)))
        return (
            EvaluationSet("tiny/colour", tuple(by_colour), gallery, recall_at=self.recall_at, average="tiny/avg"),
            EvaluationSet("tiny/shape", tuple(by_shape), gallery, recall_at=self.recall_at, average="tiny/avg"),
        )
