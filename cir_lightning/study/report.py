"""A study as tables: means, spreads and paired differences, for a page, a paper, a spreadsheet and the terminal. Light: no torch."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING, NamedTuple

from cir_lightning.study.plot import draw_costs, draw_figures
from cir_lightning.study.statistics import LEVEL, Summary, paired, summarise
from data_modules.folders import replace_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from cir_lightning.study.captions import Slices
    from cir_lightning.study.outcomes import Outcomes

NONE = "-"
SPECIAL = {character: f"\\{character}" for character in "&%$#_{}"} | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


class Table(NamedTuple):
    """Cells of text with a title above; the first row names the columns."""

    title: str
    cells: list[list[str]]


def tables(outcomes: Outcomes) -> list[Table]:
    """The headline with differences, all figures, and costs."""
    reference = outcomes.study.reference
    main = [["arm", "seeds"]]
    for figure in outcomes.headline:
        main[0] += [figure, f"less {reference}"]
    for arm in outcomes.arms:
        row = [arm, str(len({run.seed for run in outcomes.done if run.arm == arm}))]
        for figure in outcomes.headline:
            row += [_mean(outcomes, arm, figure), _difference(outcomes, arm, figure)]
        main.append(row)
    found = [Table(f"{', '.join(outcomes.headline)}: percent", main)]
    others = [figure for figure in outcomes.figures if figure not in outcomes.headline]
    for title, names in (("other figures: percent", others), ("costs", outcomes.costs)):
        if names:
            found.append(
                Table(title, [["arm", *names], *([arm, *(_mean(outcomes, arm, name) for name in names)] for arm in outcomes.arms)])
            )
    return found


def caption_tables(outcomes: Outcomes) -> list[Table]:
    """R@1 by caption length, number of edits and so on: a table for each group and property."""
    values: dict[tuple[str, str], dict[str, None]] = {}
    for run in outcomes.done:
        for key, by_value in run.slices.items():
            values.setdefault(key, {}).update(dict.fromkeys(by_value))
    found = []
    for (group, name), columns in values.items():
        rows = [[arm, *(_of(list(outcomes.sliced(arm, group, name, value).values())) for value in columns)] for arm in outcomes.arms]
        found.append(Table(f"{group} R@1 by {name}: percent", [["arm", *columns], *rows]))
    return found


def _of(values: list[float]) -> str:
    if not values:
        return NONE
    found = summarise(values)
    return _number(found.mean) + (f" ± {_number(found.spread)}" if found.spread else "")


def summary(outcomes: Outcomes, arm: str, name: str) -> Summary | None:
    """Of a figure or a cost of an arm; None if no run has it."""
    values = outcomes.values(arm, name)
    return summarise(list(values.values())) if values else None


def difference(outcomes: Outcomes, arm: str, name: str) -> Summary | None:
    """Of an arm against the reference, by seed; None for the reference itself, and where they share no seed."""
    if arm == outcomes.study.reference:
        return None
    return paired(outcomes.values(arm, name), outcomes.values(outcomes.study.reference, name))


def _mean(outcomes: Outcomes, arm: str, name: str) -> str:
    return _of(list(outcomes.values(arm, name).values()))


def _difference(outcomes: Outcomes, arm: str, name: str) -> str:
    found = difference(outcomes, arm, name)
    if found is None:
        return NONE
    if found.half is None:
        return f"{found.mean:+.2f}"
    return f"{found.mean:+.2f} [{found.mean - found.half:+.2f}, {found.mean + found.half:+.2f}]{' *' if found.excludes_zero else ''}"


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 1000 else f"{value:,.0f}"


def notes(outcomes: Outcomes) -> list[str]:
    """What a reader of the figures has to know."""
    study = outcomes.study
    counts = {arm: {run.seed for run in outcomes.done if run.arm == arm} for arm in outcomes.arms}
    several = [arm for arm, seeds in counts.items() if len(seeds) > 1]
    said = [f"Mean ± standard deviation over seeds; {', '.join(outcomes.done[0].scored[:2])}."]
    if several and len(outcomes.arms) > 1:
        said += [
            f"Differences are paired by seed, in brackets the {LEVEL:.0%} interval by Student's t; * marks those that exclude 0.",
            "Intervals speak of other seeds on these queries, not of other queries, and are not corrected for the "
            f"{len(outcomes.arms) - 1} comparisons.",
        ]
    if single := [arm for arm in counts if arm not in several]:
        said.append(f"One seed, so no spread and no interval: {', '.join(single)}.")
    if study.reference not in counts:
        said.append(f"The reference {study.reference} has no finished run, so there are no differences.")
    elif uneven := [arm for arm, seeds in counts.items() if seeds != counts[study.reference]]:
        said.append(f"Not of the same seeds as {study.reference}, so that only common ones are paired: {', '.join(uneven)}.")
    if missing := [figure for figure in study.headline if figure not in outcomes.figures]:
        said.append(f"No run has the figure {', '.join(missing)}.")
    if older := [f"{run.arm} seed {run.seed}" for run in outcomes.done if not run.slices]:
        said.append(f"Without ranks of single queries, so not in the tables by caption: {', '.join(older)}.")
    if outcomes.unfinished:
        said.append(f"Not finished: {'; '.join(outcomes.unfinished)}.")
    if len(commits := {run.commit for run in outcomes.done}) > 1:
        said.append(f"Done by different states of the source: {', '.join(sorted(commit or 'unknown' for commit in commits))}.")
    return said


def show(outcomes: Outcomes) -> str:
    """For the terminal: the headline and the costs."""
    lines = [f"study {outcomes.study.name}: {outcomes.study.about}"]
    for table in tables(outcomes):
        if table.title.startswith("other"):
            continue
        widths = [max(map(len, column)) for column in zip(*table.cells, strict=True)]
        rows = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in table.cells]
        lines += ["", *rows]
    return "\n".join([*lines, "", *notes(outcomes)])


def to_markdown(outcomes: Outcomes) -> str:
    """The page."""
    study = outcomes.study
    lines = [f"# Study {study.name}", "", study.about, "", *(f"- {note}" for note in notes(outcomes)), "", "![figures](figures.png)", ""]
    for table in (*tables(outcomes), *caption_tables(outcomes)):
        first, *rest = table.cells
        rows = [first, ["---", *["---:"] * (len(first) - 1)], *rest]
        lines += [f"## {table.title[0].upper()}{table.title[1:]}", "", *("| " + " | ".join(row) + " |" for row in rows), ""]
    lines += [
        "![recall against cost](costs.png)",
        "",
        f"Made by `cir study report {study.name}` of what `cir study run {study.name}` did.",
        "",
    ]
    return "\n".join(lines)


def to_latex(outcomes: Outcomes) -> str:
    """The headline as a ``tabular`` for booktabs."""
    first, *rest = tables(outcomes)[0].cells
    lines = [
        rf"\begin{{tabular}}{{l{'r' * (len(first) - 1)}}}",
        r"\toprule",
        _latex(first),
        r"\midrule",
        *map(_latex, rest),
        r"\bottomrule",
    ]
    said = [f"% {note}" for note in notes(outcomes)]
    return "\n".join([*said, *lines, r"\end{tabular}", ""])


def _latex(row: list[str]) -> str:
    cells = ("".join(SPECIAL.get(character, character) for character in cell.replace("\\", " ")) for cell in row)
    return " & ".join(cell.replace(" ± ", r" $\pm$ ") for cell in cells) + r" \\"


def to_csv(outcomes: Outcomes) -> str:
    """A line for every run and figure or cost."""
    lines = (
        (run.arm, run.seed, kind, name, value, run.commit)
        for run in outcomes.done
        for kind, numbers in (("figure", run.figures), ("cost", run.costs), ("R@1 of queries", _flat(run.slices)))
        for name, value in numbers.items()
    )
    return _csv(["arm", "seed", "kind", "name", "value", "commit"], lines)


def _flat(slices: Slices) -> dict[str, float]:
    return {f"{group}, {name} {value}": recall for (group, name), by_value in slices.items() for value, recall in by_value.items()}


def to_summary(outcomes: Outcomes) -> str:
    """A line for every arm and figure or cost, as CSV: mean, spread, interval, and the difference to the reference."""
    names = ["arm", "name", "seeds", "mean", "spread", "low", "high", "difference", "difference_low", "difference_high"]
    lines = []
    for arm in outcomes.arms:
        for name in (*outcomes.figures, *outcomes.costs):
            own, other = summary(outcomes, arm, name), difference(outcomes, arm, name)
            if own is not None:
                lines.append((arm, name, own.n, own.mean, own.spread, *_ends(own), other.mean if other else None, *_ends(other)))
    return _csv(names, lines)


def _ends(of: Summary | None) -> tuple[float | None, float | None]:
    return (None, None) if of is None or of.half is None else (of.mean - of.half, of.mean + of.half)


def _csv(names: list[str], lines: Iterable[tuple[object, ...]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows([names, *lines])
    return file.getvalue()


def write(outcomes: Outcomes, folder: Path) -> list[Path]:
    """Write the page, tables and pictures into a folder; each file whole or not at all."""
    content = {"study": outcomes.study.name, "about": outcomes.study.about, "reference": outcomes.study.reference}
    record = content | {"notes": notes(outcomes), "runs": [run._asdict() | {"slices": _flat(run.slices)} for run in outcomes.done]}
    texts = {
        "report.md": to_markdown(outcomes),
        "report.csv": to_csv(outcomes),
        "summary.csv": to_summary(outcomes),
        "report.tex": to_latex(outcomes),
        "report.json": json.dumps(record, indent=1, ensure_ascii=False) + "\n",
    }
    files: dict[str, Callable[[Path], object]] = {name: _writer(text) for name, text in texts.items()}
    for name, drawing in (("figures", draw_figures(outcomes)), ("costs", draw_costs(outcomes))):
        files[f"{name}.png"], files[f"{name}.svg"] = drawing.save_png, _writer(drawing.to_svg())
    for name, make in files.items():
        replace_file(folder / name, make)
    return [folder / name for name in files]


def _writer(text: str) -> Callable[[Path], object]:
    return lambda part: part.write_text(text, encoding="utf-8")
