"""What a run of ``cir bench`` found: every raw sample, and what follows from it by arithmetic. Light: no torch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

from data_modules.errors import UserError
from data_modules.folders import replace_file
from data_modules.stages import (
    BACKWARD,
    CAPTION,
    CONNECTOR,
    FEATURES,
    GATHER,
    LLM,
    LOSS,
    OPTIMIZER,
    POOLING,
    RANKING,
    READ,
    TEMPLATE,
    TOWER,
    TRANSFORM,
)

if TYPE_CHECKING:
    from pathlib import Path

FORMAT = "cir-bench-1"
PICTURES, TRAINING, GALLERY, QUERIES, LATENCY, COLD_LATENCY = (
    "pictures",
    "training",
    "gallery",
    "queries",
    "query, features cached",
    "query, from a file",
)
OTHER = "other"
COLD = (READ, TRANSFORM, TOWER)  # done once per picture, ever, where features are cached
_ENCODE = {FEATURES: (FEATURES,), CONNECTOR: (CONNECTOR,), TEMPLATE: (TEMPLATE,)}
_PIXELS: dict[str, tuple[str, ...]] = {name: (name,) for name in COLD}
_READ_LLM = {LLM: (LLM,), POOLING: (POOLING,)}
ROWS: dict[str, dict[str, tuple[str, ...]]] = {  # of every kind of work, the rows of its table and the stages that they add up
    PICTURES: _PIXELS,
    TRAINING: {
        FEATURES: (FEATURES,),
        CONNECTOR: (CONNECTOR,),
        "template and tokenising": (TEMPLATE, CAPTION),
        LLM: (LLM,),
        "pooling and projection": (POOLING,),
        GATHER: (GATHER,),
        LOSS: (LOSS,),
        BACKWARD: (BACKWARD,),
        OPTIMIZER: (OPTIMIZER,),
    },
    GALLERY: {**_ENCODE, **_READ_LLM},
    QUERIES: {**_ENCODE, CAPTION: (CAPTION,), **_READ_LLM},
    LATENCY: {**_ENCODE, CAPTION: (CAPTION,), **_READ_LLM, RANKING: (RANKING,)},
    COLD_LATENCY: {**_PIXELS, CONNECTOR: (CONNECTOR,), TEMPLATE: (TEMPLATE,), CAPTION: (CAPTION,), **_READ_LLM, RANKING: (RANKING,)},
    RANKING: {RANKING: (RANKING,)},
}
ITEM = {PICTURES: "picture", TRAINING: "triplet", GALLERY: "picture", QUERIES: "query", RANKING: "query"}


@dataclass
class Work:
    """One kind of work at one batch size.

    Attributes:
        kind: a key of ``ROWS``.
        batch: triplets, pictures or queries that are worked on at once; of a ranking, all queries.
        pictures: distinct pictures among them.
        refused: why it was not measured.
        notes: what its reader must know.
        seconds: for every round, seconds of every stage; their sum is the whole.
        unobserved: seconds of as many rounds without anybody observing, in between.
        flops: of one round, of every stage.
        tokens: of every stage, through the language model: real ones and computed ones.
        peak: of every stage, bytes above ``held``; None where the machine does not tell.
        held: bytes before, weights and cached features among them.
        matrix: FLOP/s of a matrix product right afterwards, in the same precision.
    """

    kind: str
    batch: int
    pictures: int = 0
    refused: str = ""
    notes: list[str] = field(default_factory=list)
    seconds: list[dict[str, float]] = field(default_factory=list)
    unobserved: list[float] = field(default_factory=list)
    flops: dict[str, float] = field(default_factory=dict)
    tokens: dict[str, tuple[float, float]] = field(default_factory=dict)
    peak: dict[str, float] | None = None
    held: float | None = None
    matrix: float = 0.0

    @property
    def whole(self) -> float:
        """Median seconds of a round."""
        return median(sum(one.values()) for one in self.seconds)

    @property
    def stages(self) -> list[str]:
        """Those that were seen."""
        return list(dict.fromkeys(name for one in self.seconds for name in one))

    def time(self, *stages: str) -> float:
        """Median seconds of some stages together."""
        return median(sum(one.get(name, 0.0) for name in stages) for one in self.seconds)

    def rows(self) -> dict[str, tuple[str, ...]]:
        """The rows of its table, with the stages that each adds up; ``other`` is what no row claims."""
        seen = self.stages
        pixels = {name: (name,) for name in COLD if name in seen}
        rows = {**pixels, **ROWS[self.kind]}
        claimed = {name for names in rows.values() for name in names}
        return {**rows, OTHER: tuple(name for name in seen if name not in claimed)}

    def shares(self) -> dict[str, float]:
        """Each row's share of the sum of the rows' medians, so that they are together 1."""
        times = {row: self.time(*stages) for row, stages in self.rows().items()}
        whole = sum(times.values())
        return {row: time / whole for row, time in times.items()}

    def total_tokens(self) -> tuple[float, float]:
        """Real and computed tokens of the whole; those that a backward pass reads again are left out."""
        counted = [pair for name, pair in self.tokens.items() if name != BACKWARD]
        return sum(real for real, _ in counted), sum(computed for _, computed in counted)


@dataclass
class Arm:
    """One recipe.

    Attributes:
        name: its configs.
        label: the method's name in results tables.
        device: where it ran.
        precision: of the trainer.
        seed: of weights and data.
        config: all of the configuration, as YAML.
        parameters: of the language model or text encoder, of all else, and those that are trained.
        sizes: queries and pictures of an evaluation, width of an embedding.
        batches: batch sizes of the recipe, training and evaluation.
        refused: why nothing was measured.
        works: what was.
        traces: files of torch's profiler.
    """

    name: str
    label: str = ""
    device: str = ""
    precision: str = ""
    seed: int = 0
    config: str = ""
    parameters: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    batches: dict[str, int] = field(default_factory=dict)
    refused: str = ""
    works: list[Work] = field(default_factory=list)
    traces: list[str] = field(default_factory=list)

    def find(self, kind: str, batch: int | None = None) -> Work | None:
        """What was measured of a kind at a batch size, or at any."""
        fits = (work for work in self.works if work.kind == kind and not work.refused and batch in (None, work.batch))
        return next(fits, None)


@dataclass
class Bench:
    """A run.

    Attributes:
        header: hardware, versions and settings.
        arms: the recipe, and the recipe with each overlay.
    """

    header: dict[str, Any]
    arms: list[Arm] = field(default_factory=list)

    @property
    def measured(self) -> list[Arm]:
        """The arms that were not refused."""
        return [arm for arm in self.arms if not arm.refused]

    def matrix_peak(self, arm: Arm) -> float:
        """FLOP/s of the fastest matrix product on an arm's device and in its precision, whenever it was."""
        alike = (one for one in self.arms if (one.device, one.precision) == (arm.device, arm.precision))
        return max((work.matrix for one in alike for work in one.works), default=0.0)


def write(bench: Bench, file: Path) -> None:
    """Write the JSON file, whole or not at all."""
    content = json.dumps({"format": FORMAT, **asdict(bench)}, indent=1) + "\n"
    replace_file(file, lambda part: part.write_text(content, encoding="utf-8"))


def read(file: Path) -> Bench:
    """Read a JSON file.

    Raises:
        UserError: it cannot be read, or is none of ``cir bench``.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--compare {file}: cannot be read ({error.strerror}); name the bench.json of a run of cir bench") from error
    except ValueError as error:
        raise UserError(f"--compare {file}: not JSON; name the bench.json of a run of cir bench") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise UserError(
            f"--compare {file}: its format is {found!r}, not {FORMAT!r}; name the bench.json of a run of this version's cir bench"
        )
    try:
        arms = [Arm(**{**arm, "works": list(map(_work, arm["works"]))}) for arm in content["arms"]]
        return Bench(content["header"], arms)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"--compare {file}: damaged ({error}); run cir bench again") from error


def _work(content: dict[str, Any]) -> Work:
    tokens = {name: (real, computed) for name, (real, computed) in content["tokens"].items()}
    return Work(**{**content, "tokens": tokens})
