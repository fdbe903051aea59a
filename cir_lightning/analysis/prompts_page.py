"""The result of ``cir analyze prompts``: a page, pictures and tables."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd  # type: ignore[import-untyped]
import torch
from PIL import Image, ImageDraw

from cir_lightning.analysis import prompts
from cir_lightning.analysis.page import Page
from cir_lightning.drawing import Drawing, font
from cir_lightning.storage import replace_file
from cir_lightning.study.plot import BLUE, GREY, ORANGE, Axis, linear_ticks
from data_modules.images import load_image

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor

    from cir_lightning.analysis.prompts_run import Findings
    from data_modules.records import Picture

THUMB, STRIP, MARGIN = 56, 10, 44  # pixels of a picture, pictures of a strip, pixels beside it
STRIPS = 60  # of the most frequent prompts
MAP = 560  # units of the map's side
COLOURS = (BLUE, ORANGE, "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#b8a800", "#7f3c8d")  # of the prompts that are chosen most


class Pairs(NamedTuple):
    """A property of the queries: the reference, its first prompt, and each value that the query has."""

    references: list[int]
    prompts: list[int]
    values: list[str]


def properties(findings: Findings) -> dict[str, Pairs]:
    """Of all queries, by name of the property."""
    found: dict[str, Pairs] = {}
    for place, known in zip(findings.queries, findings.known, strict=True):
        for name, values in known.items():
            pairs = found.setdefault(name, Pairs([], [], []))
            pairs.references.extend([place] * len(values))
            pairs.prompts.extend([int(findings.chosen[place, 0])] * len(values))
            pairs.values.extend(values)
    return found


def prompt_table(findings: Findings) -> pd.DataFrame:
    """A line for each prompt: how often it is chosen, its nearest words, what chooses it."""
    pool = findings.pool
    gallery = prompts.usage(findings.chosen, pool.size)
    asked = prompts.usage(findings.chosen[findings.queries], pool.size)
    tokens = pool.prompts.detach().flatten(0, 1)
    words = prompts.nearest_words(tokens, findings.embeddings, findings.words)
    typical = properties(findings)
    lines = []
    for number in range(pool.size):
        near = words[number * pool.tokens : (number + 1) * pool.tokens]
        line = {
            "prompt": number,
            "pictures": int(gallery.counts[number]),
            "first": int(gallery.first[number]),
            "queries": int(asked.counts[number]),
            "nearest words": " | ".join(", ".join(f"{word.text} {word.cosine:.2f}" for word in token) for token in near),
        }
        for name, pairs in typical.items():
            best = prompts.most_typical(pairs.prompts, pairs.values, number)
            line[name] = ", ".join(f"{value} ({count}, {lift:.1f} times)" for value, count, lift in best)
        lines.append(line)
    return pd.DataFrame(lines)


def information_table(findings: Findings) -> pd.DataFrame:
    """A line for each property: mutual information with the first prompt, beside its control."""
    return pd.DataFrame([prompts.information(name, *pairs)._asdict() for name, pairs in properties(findings).items()])


def draw_matrix(values: Tensor) -> Image.Image:
    """Cosines (M, M) as a picture: blue below 0, white at 0, orange above."""
    values, cell = values.float().clamp(-1, 1), max(4, min(16, 560 // len(values)))
    blue, orange, white = (torch.tensor(rgb, dtype=torch.float32) for rgb in ((0, 114, 178), (213, 94, 0), (255, 255, 255)))
    end = torch.where(values[..., None] < 0, blue, orange)
    colours = white + values.abs()[..., None] * (end - white)
    image = Image.fromarray(colours.round().byte().numpy())
    return image.resize((cell * len(values), cell * len(values)), Image.Resampling.NEAREST)


def draw_map(findings: Findings) -> Drawing:
    """Pictures by what they look for, in the colour of their first prompt, and the keys as numbers."""
    keys = torch.nn.functional.normalize(findings.pool.keys.detach().float(), dim=-1)
    pictures, places, share = prompts.plane(findings.asked, keys)
    every = torch.cat([pictures, places])
    ends = list(zip(every.amin(0).tolist(), every.amax(0).tolist(), strict=True))
    axes = [Axis([low, max(high, low + 1e-9)], 30, MAP - 30) for low, high in ends]
    used = prompts.usage(findings.chosen, findings.pool.size).first.argsort(descending=True, stable=True).tolist()
    colour = dict(zip(used, COLOURS, strict=False))
    drawing = Drawing(MAP, MAP + 24)
    for (x, y), prompt in zip(pictures.tolist(), findings.chosen[:, 0].tolist(), strict=True):
        drawing.dot(axes[0].place(x), axes[1].place(y), 2, colour.get(prompt, GREY))
    for number, (x, y) in enumerate(places.tolist()):
        drawing.text(axes[0].place(x), axes[1].place(y), str(number), 13, "m", colour.get(number, "black"))
    drawing.text(12, MAP + 10, f"dots: pictures, numbers: keys; the two directions hold {100 * share:.0f} % of the variance", 12)
    return drawing


def draw_training(training: dict[int, dict[str, float]]) -> Drawing:
    """Entropy and share of unused prompts, over the steps of training."""
    steps = list(training)
    drawing = Drawing(620, 300)
    x, y = Axis(linear_ticks(0, max(steps)), 50, 590), Axis([0.0, 0.25, 0.5, 0.75, 1.0], 250, 30)
    for tick in y.ticks:
        drawing.line(50, y.place(tick), 590, y.place(tick), GREY)
        drawing.text(44, y.place(tick), f"{tick:g}", 12, "r")
    for tick in x.ticks:
        drawing.text(x.place(tick), 266, f"{tick:g}", 12, "m")
    for at, (name, colour, words) in enumerate(
        (("prompts/entropy", BLUE, "entropy"), ("prompts/unused", ORANGE, "share of prompts unused"))
    ):
        points = [(x.place(step), y.place(values[name])) for step, values in training.items() if name in values]
        for one, other in pairwise(points):
            drawing.line(*one, *other, colour, 2)
        for point in points:
            drawing.dot(*point, 3, colour)
        drawing.text(60 + 200 * at, 14, words, 13, "l", colour)
    drawing.text(320, 288, "step", 12, "m")
    return drawing


def draw_strips(findings: Findings, pictures: Sequence[Picture]) -> Image.Image:
    """For each prompt that pictures choose first, those that are nearest to its key."""
    keys = torch.nn.functional.normalize(findings.pool.keys.detach().float(), dim=-1)
    near = findings.asked @ keys.T
    first = findings.chosen[:, 0]
    counts = prompts.usage(findings.chosen, findings.pool.size).first
    shown = [number for number in counts.argsort(descending=True, stable=True).tolist() if counts[number]][:STRIPS]
    sheet = Image.new("RGB", (MARGIN + STRIP * (THUMB + 4), 8 + max(1, len(shown)) * (THUMB + 8)), "white")
    pen = ImageDraw.Draw(sheet)
    for line, number in enumerate(shown):
        top = 8 + line * (THUMB + 8)
        pen.text((6, top + THUMB / 2), str(number), fill="black", font=font(15), anchor="lm")
        mine = (first == number).nonzero().flatten()
        for at, place in enumerate(mine[near[mine, number].argsort(descending=True, stable=True)][:STRIP].tolist()):
            picture = pictures[findings.pictures[place]]
            image = load_image(picture.path, picture.box)
            image.thumbnail((THUMB, THUMB))
            sheet.paste(image, (MARGIN + at * (THUMB + 4), top))
    return sheet


def write(findings: Findings, pictures: Sequence[Picture], about: Sequence[str], folder: Path) -> list[Path]:
    """Write ``prompts.html``, the tables as CSV, and the pictures; each file is whole or not there.

    Args:
        findings: of the model.
        pictures: of the data set, by position.
        about: sentences about where the result comes from.
        folder: to write into.
    """
    page = Page("What the prompts are used for", about)
    files: dict[str, Callable[[Path], object]] = {}
    table, told = prompt_table(findings), information_table(findings)
    _say_usage(page, findings)
    strips = draw_strips(findings, pictures)
    page.heading("Pictures that choose each prompt first", 3)
    page.text("The most frequent prompt first; of its pictures those that are nearest to its key.")
    page.picture(strips, "pictures beside the number of their first prompt")
    files["strips.png"] = partial(strips.save, format="PNG")
    _say_training(page, findings, files)
    _say_information(page, told)
    _say_prompts(page, findings, table)
    page.heading("Keys and prompts beside each other")
    page.text("Cosines, from -1 (blue) over 0 (white) to 1 (orange): of the keys, then of the prompts, all tokens of each in one vector.")
    for name, vectors in (("keys", findings.pool.keys), ("prompts", findings.pool.prompts.flatten(1))):
        matrix = draw_matrix(prompts.cosines(vectors.detach()))
        page.picture(matrix, f"cosines of the {name}")
        files[f"{name}.png"] = partial(matrix.save, format="PNG")
    drawing = draw_map(findings)
    page.heading("Map")
    page.text(
        "Pictures by what they ask for, in the colour of the prompt that they choose first (grey: one of the rarer ones), among the keys."
    )
    page.svg(drawing.to_svg())
    files["map.png"] = drawing.save_png
    files = {
        "prompts.html": partial(_write_text, text=page.html()),
        "prompts.csv": partial(table.to_csv, index=False),
        "information.csv": partial(told.to_csv, index=False),
    } | files
    for name, make in files.items():
        replace_file(folder / name, make)
    return [folder / name for name in files]


def _say_usage(page: Page, findings: Findings) -> None:
    pool = findings.pool
    gallery, asked = prompts.usage(findings.chosen, pool.size), prompts.usage(findings.chosen[findings.queries], pool.size)
    page.text(
        f"A pool of {pool.size} prompt{'s' if pool.size > 1 else ''} of {pool.tokens} token{'s' if pool.tokens > 1 else ''}; "
        f"each picture chooses {pool.chosen}. The caption has no say in it."
    )
    rows = [
        [what, str(count), f"{used.entropy:.3f}", f"{len(used.dead)} of {pool.size}", f"{100 * _most(used.first):.1f}"]
        for what, count, used in (("pictures", len(findings.pictures), gallery), ("queries' references", len(findings.queries), asked))
    ]
    page.table(
        ["of", "how many", "entropy (1: all prompts alike)", "prompts nobody chooses", "percent with the most frequent first prompt"], rows
    )


def _most(first: Tensor) -> float:
    return float(first.max() / first.sum().clamp_min(1))


def _say_training(page: Page, findings: Findings, files: dict[str, Callable[[Path], object]]) -> None:
    page.heading("Over training")
    if not findings.training:
        page.text("TensorBoard's log of this run has no figures of the pool, or is not beside the checkpoint.")
        return
    drawing = draw_training(findings.training)
    page.svg(drawing.to_svg())
    files["training.png"] = drawing.save_png


def _say_information(page: Page, told: pd.DataFrame) -> None:
    page.heading("What the choice says of a query")
    page.text(
        "Mutual information of the first prompt that the reference chooses with what is known of the query, in bits, and what it is when "
        f"prompts are dealt to the references at random ({prompts.SHUFFLES} times): only what is above that is knowledge. p: share of the "
        "shuffles with as much."
    )
    rows = [
        [one.name, str(one.values), f"{one.bits:.3f}", f"{one.shuffled:.3f}", f"{one.largest:.3f}", f"{one.p:.3f}"]
        for one in (prompts.Information(*line) for line in told.itertuples(index=False, name=None))
    ]
    page.table(["property", "values", "bits", "shuffled: mean", "largest", "p"], rows)


def _say_prompts(page: Page, findings: Findings, table: pd.DataFrame) -> None:
    mean, high = prompts.random_nearest(findings.embeddings)
    page.heading("Each prompt")
    page.text(
        f"The words of the LLM nearest to each token, with their cosines. A random direction's nearest word has {mean:.2f} on average, and "
        f"one in twenty more than {high:.2f}: words below that say nothing. What chooses a prompt: values that stand out among the queries "
        "whose reference chooses it first, with their number and how many times more often than by chance. Pictures: how many choose it at "
        "all; first: how many choose it before any other; queries: how many have a reference that chooses it at all."
    )
    order = table.sort_values(["first", "pictures"], ascending=False, kind="stable")
    page.table(list(order.columns), [[str(cell) for cell in row] for row in order.itertuples(index=False, name=None)])


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
