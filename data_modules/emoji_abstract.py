"""The group ``emoji/abstract``: captions name a relation ("what this animal eats") instead of what has to change.

It is for tests alone: no relation is ever said in training, and nothing was tuned on it. The gallery holds all pictures that are drawn,
also those of roles with few variants, which no triplet has; of these the Connector has seen the ones outside the held-out splits with their
titles, if it was aligned.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import chain
from typing import TYPE_CHECKING

from data_modules.emoji_names import MOON_PHASES, NUMBERS
from data_modules.emoji_relations import GROUPS, RELATIONS
from data_modules.records import EvaluationSet, Query

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from data_modules.emoji_queries import Variant

HOURS = {"an hour later": 2, "three hours later": 6, "half an hour earlier": -1, "five hours earlier": -10}  # in half hours
WEEKS = {"a week later": 2, "two weeks later": 4, "a few days earlier": -1}  # in eighths of a month
TURNS = {"in the opposite direction": 4, "after a quarter turn clockwise": 2, "after a quarter turn the other way round": -2}
COMPASS = ("up", "up-right", "right", "down-right", "down", "down-left", "left", "up-left")
Row = tuple[str, str, str, list[str]]  # kind of relation, reference, caption, answers


def write_abstract(variants: Sequence[Variant]) -> EvaluationSet:
    """The evaluation set over all pictures; without queries where pictures are missing, as if another package had drawn them.

    Args:
        variants: all pictures.
    """
    contents = {variant.name: variant.content for variant in variants}
    twins: defaultdict[str, list[str]] = defaultdict(list)
    for name, content in contents.items():
        twins[content].append(name)
    queries = []
    numbers: defaultdict[str, int] = defaultdict(int)
    for kind, reference, caption, answers in chain(_of_tables(variants), _of_cycles(variants)):
        right = dict.fromkeys(twin for answer in answers for twin in twins[contents[answer]] if contents[answer] != contents[reference])
        queries.append(Query(f"{kind}-{numbers[kind]:02d}", reference, caption, tuple(right)))
        numbers[kind] += 1
    protocol = "captions name a relation; reference removed, ties count against the model; R@K: any right answer"
    return EvaluationSet("emoji/abstract", tuple(queries), tuple(sorted(contents)), protocol=protocol)


def _of_tables(variants: Sequence[Variant]) -> Iterator[Row]:
    """The queries of :data:`RELATIONS`; their wordings in turn."""
    roles: defaultdict[str, list[str]] = defaultdict(list)
    for variant in variants:
        roles[variant.role].append(variant.name)
        roles[f"{variant.role}/{variant.description.attributes.get('gender', '')}"].append(variant.name)
    for kind, (wordings, lines) in RELATIONS.items():
        number = 0
        for line in _joined(lines):
            references, _, answers = line.partition(": ")
            for reference in _names(references.split(), roles):
                yield kind, reference, wordings[number % len(wordings)], list(_names(answers.split(), roles))
                number += 1


def _joined(lines: str) -> Iterator[str]:
    """Lines, with those that go on in the next one, which has no colon, made one."""
    found: list[str] = []
    for line in filter(None, map(str.strip, lines.splitlines())):
        if ": " in line:
            found.append(line)
        else:
            found[-1] += f" {line}"
    return iter(found)


def _names(words: Iterable[str], roles: dict[str, list[str]]) -> Iterator[str]:
    for word in words:
        if word in GROUPS:
            yield from _names(GROUPS[word].split(), roles)
        elif word.startswith("@"):
            yield from roles[word[1:].replace("_", " ")]
        else:
            yield word.replace("'", "\u2019")


def _of_cycles(variants: Sequence[Variant]) -> Iterator[Row]:
    """Clocks, phases of the moon and arrows: what comes a number of steps later; their wordings in turn."""
    half_hours = [f"{start}{number}{end}" for number in NUMBERS for start, end in (("", " o'clock"), ("half past ", ""))]
    cycles = (
        ("clock", "time", half_hours, HOURS),
        ("moon", "phase", list(MOON_PHASES), WEEKS),
        ("arrow", "direction", list(COMPASS), TURNS),
    )
    for role, attribute, cycle, steps in cycles:
        names = {variant.description.attributes[attribute]: variant.name for variant in variants if variant.role == role}
        for at, value in enumerate(cycle):
            for caption, step in list(steps.items())[at % len(steps) :][:1]:
                yield role, names[value], caption, [names[cycle[(at + step) % len(cycle)]]]
