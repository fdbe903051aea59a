"""R@1 by what captions are like, of the ``queries.csv`` that ``cir test`` leaves. Light: no torch."""

from __future__ import annotations

import csv
from collections import defaultdict
from typing import TYPE_CHECKING

from cir_lightning.analysis.failures import LENGTH, by_value, length_bins, recall
from data_modules.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

QUERIES = "queries.csv"
JOIN = "; "  # of several values
OWN = ("group", "query", "reference", "caption", "rank")  # columns that are no property
MOST = 18  # values of a property, as columns of a table; what has more, such as roles, is left out
Slices = dict[tuple[str, str], dict[str, float]]  # group and property -> value and number of queries -> R@1 in percent


def slices_of(file: Path) -> Slices:
    """Of one run; empty where the file is missing, as in runs of earlier versions.

    Raises:
        UserError: the file is damaged.
    """
    if not file.is_file():
        return {}
    ranks: defaultdict[str, list[int]] = defaultdict(list)
    texts: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            for line in csv.DictReader(lines, strict=True):
                ranks[line["group"]].append(int(line["rank"]))
                for name, value in line.items():
                    if name not in OWN:
                        texts[line["group"], name].append(str(value.strip()))
    except (AttributeError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise UserError(f"{file}: damaged ({type(error).__name__}: {error}); run cir test on {file.parent.parent} again") from error
    found: Slices = {}
    for (group, name), values in texts.items():
        lists = [[value for value in text.split(JOIN) if value] for text in values]
        places = dict(length_bins([int(value) for value in values])) if name == LENGTH else by_value(lists)
        if 1 < len(places) <= MOST:
            found[group, name] = {f"{value} ({len(some)})": recall([ranks[group][at] for at in some], 1) for value, some in places.items()}
    return found
