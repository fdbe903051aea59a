"""What the prompts of a pool are used for, in numbers.

Shapes: P pictures or queries, M prompts of the pool, K chosen for each picture, Lp tokens of a prompt, D LLM width, W words.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn import functional as F  # noqa: N812 - torch's own convention

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

SHUFFLES = 200  # of the control of mutual information
LEAST = 3  # pairs that make a value typical
RANDOM = 200  # vectors of the control of nearest words


class Usage(NamedTuple):
    """How often each prompt is chosen.

    Attributes:
        counts: (M,) long, how many pictures choose it, at any place.
        first: (M,) long, how many choose it before all others.
        entropy: of the choices, relative to its maximum: 1 if all prompts are chosen alike.
        dead: numbers of the prompts that nothing chooses.
    """

    counts: Tensor
    first: Tensor
    entropy: float
    dead: list[int]


class Information(NamedTuple):
    """How much the first prompt that a reference chooses says of a property of its query.

    Attributes:
        name: of the property.
        values: that it has.
        bits: mutual information.
        shuffled: its mean if prompts are dealt to references at random, which is above 0 in finite samples.
        largest: the largest of these.
        p: share of the shuffles, and of what was seen, with as much information.
    """

    name: str
    values: int
    bits: float
    shuffled: float
    largest: float
    p: float


class Word(NamedTuple):
    """A word of the LLM's vocabulary beside a prompt token, with their cosine."""

    text: str
    cosine: float


def usage(chosen: Tensor, size: int) -> Usage:
    """Count choices.

    Args:
        chosen: (P, K) long, best first.
        size: M.
    """
    counts = torch.bincount(chosen.flatten(), minlength=size)
    share = counts[counts > 0] / counts.sum()
    entropy = float(-(share * share.log()).sum()) / math.log(size) if size > 1 else 1.0
    return Usage(counts, torch.bincount(chosen[:, 0], minlength=size), entropy, (counts == 0).nonzero().flatten().tolist())


def cosines(vectors: Tensor) -> Tensor:
    """Of (M, D) with each other: (M, M)."""
    unit = F.normalize(vectors.float(), dim=-1)
    return unit @ unit.T


def information(name: str, references: Sequence[int], prompts: Sequence[int], values: Sequence[str], seed: int = 0) -> Information:
    """Mutual information of prompts and values, in bits, and what it would be by chance.

    The prompt follows from the reference, which several queries share: by chance, prompts are dealt to references and not to queries.

    Args:
        name: of the property.
        references: of each pair of a query and one of its values.
        prompts: the first one of each reference, likewise.
        values: likewise.
        seed: of the shuffles.
    """
    draw, own = random.Random(seed), dict(zip(references, prompts, strict=True))
    seen, control, dealt = mutual_information(prompts, values), [], list(own.values())
    for _ in range(SHUFFLES):
        draw.shuffle(dealt)
        given = dict(zip(own, dealt, strict=True))
        control.append(mutual_information([given[reference] for reference in references], values))
    as_much = sum(one >= seen - 1e-12 for one in control)
    return Information(name, len(set(values)), seen, sum(control) / SHUFFLES, max(control), (1 + as_much) / (1 + SHUFFLES))


def mutual_information(ones: Sequence[object], others: Sequence[object]) -> float:
    """In bits, of paired observations.

    >>> mutual_information("aabb", "xxyy"), mutual_information("abab", "xxyy")
    (1.0, 0.0)
    """
    n = len(ones)
    one, other, both = Counter(ones), Counter(others), Counter(zip(ones, others, strict=True))
    return sum(count / n * math.log2(count * n / (one[a] * other[b])) for (a, b), count in both.items())


def plane(vectors: Tensor, others: Tensor) -> tuple[Tensor, Tensor, float]:
    """The two directions in which vectors (P, D) differ most: places (P, 2), those of others (M, 2), and the share of the variance."""
    mean = vectors.mean(0)
    centred = (vectors - mean).double()
    variances, directions = torch.linalg.eigh(centred.T @ centred)  # ascending; D x D, where a gallery has 10^5 pictures
    axes = directions[:, -2:].flip(1)
    share = float(variances[-2:].sum() / variances.sum().clamp_min(1e-12))
    return centred @ axes, (others - mean).double() @ axes, share


def nearest_words(tokens: Tensor, embeddings: Tensor, words: Sequence[str], count: int = 5) -> list[list[Word]]:
    """The words whose embeddings point most nearly where prompt tokens do.

    Args:
        tokens: (n, D), around zero.
        embeddings: (W, D), around zero.
        words: W.
        count: of each token.
    """
    found = (F.normalize(tokens.float(), dim=-1) @ F.normalize(embeddings.float(), dim=-1).T).topk(count)
    return [
        [Word(words[at], value) for at, value in zip(places, values, strict=True)]
        for places, values in zip(found.indices.tolist(), found.values.tolist(), strict=True)
    ]


def random_nearest(embeddings: Tensor, seed: int = 0) -> tuple[float, float]:
    """The cosine of a random direction's nearest word: the mean of many, and what one in twenty exceeds."""
    draw = torch.Generator().manual_seed(seed)
    vectors = F.normalize(torch.randn(RANDOM, embeddings.shape[1], generator=draw), dim=-1)
    best = (vectors @ F.normalize(embeddings.float(), dim=-1).T).max(1).values
    return float(best.mean()), float(best.quantile(0.95))


def most_typical(prompts: Sequence[int], values: Sequence[str], prompt: int, count: int = 3) -> list[tuple[str, int, float]]:
    """The values that choose a prompt most beyond their share: value, pairs, and how many times more often than by chance."""
    mine = Counter(value for one, value in zip(prompts, values, strict=True) if one == prompt)
    every, share = Counter(values), sum(mine.values()) / max(1, len(values))
    lifted = [
        (value, number, number / (every[value] * share)) for value, number in mine.items() if number >= max(LEAST, every[value] * share)
    ]
    return sorted(lifted, key=lambda one: (-(one[1] - every[one[0]] * share), one[0]))[:count]
