"""The embedded benchmark's splits, triplets and queries, made by rule from the names of its pictures.

The gallery holds the pictures of all roles with enough variants. Some roles are held out of training with all their pictures; of the
others, a share of the pictures is. Pictures with equal pixels ("twins") always share a split and an answer. Everything is drawn from
the rules' seed, and nothing depends on the order of a set or a hash.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from data_modules.emoji_abstract import write_abstract
from data_modules.emoji_captions import ONE_GENDER, caption, title
from data_modules.emoji_names import Description, complete, parse
from data_modules.emoji_render import catalogue, code_points, read_contents
from data_modules.errors import UserError
from data_modules.records import Benchmark, EvaluationSet, Picture, Query, Triplet

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

# Only these show times, phases, colours, slanting directions or hair: held out, they would ask for edits that training never says.
NEVER_HELD_OUT = frozenset({"clock", "heart", "arrow", "circle", "moon", "square", "adult"})
VAL_SHARE, TEST_SHARE = 0.1, 0.2  # of a seen role's pictures
HELD_OUT_VAL_SHARE = 3 / 7  # of the held-out roles
MAX_EDITS = 2
LOOK_ALIKES = 4


@dataclass(frozen=True)
class Variant:
    """One picture as the rules see it.

    Attributes:
        name: picture name.
        path: picture file.
        description: role and all attributes (:func:`data_modules.emoji_names.complete`).
        content: equal for equal pixels.
    """

    name: str
    path: Path
    description: Description
    content: str

    @property
    def role(self) -> str:
        """The description's role."""
        return self.description.role


@dataclass(frozen=True)
class Rules:
    """How the benchmark is drawn; the arguments of :class:`data_modules.emoji.EmojiCIR` of the same names."""

    held_out_roles: int = 35
    min_variants: int = 6
    triplets_per_target: int = 24
    queries_per_target: int = 4
    queries_per_held_out_target: int = 3
    role_edit_share: float = 0.25
    split_seed: int = 0


class Splits(NamedTuple):
    """The gallery's pictures by what they are for, and the pictures outside it."""

    train: list[Variant]
    val: list[Variant]
    test: list[Variant]
    held_out_val: list[Variant]
    held_out_test: list[Variant]
    outside: list[Variant]

    @property
    def gallery(self) -> list[Variant]:
        """All pictures of the gallery, by name."""
        return sorted(chain(*self[:-1]), key=lambda variant: variant.name)


def write_benchmark(folder: Path, rules: Rules) -> Benchmark:
    """All records of the benchmark.

    Args:
        folder: the drawn pictures (:func:`data_modules.emoji_render.ensure_pictures`).
        rules: how it is drawn.

    Raises:
        UserError: the folder's index is damaged, or there are fewer roles than are to be held out.
    """
    variants = read_variants(folder)
    splits = split_pictures(variants, rules)
    writer = Writer(splits.gallery, rules.role_edit_share)
    val, test = write_evaluation_sets(writer, splits, rules)
    abstract = write_abstract(variants)
    kept_out = {v.content for part in (splits.val, splits.test, splits.held_out_val, splits.held_out_test) for v in part}
    return Benchmark(
        pictures=tuple(Picture(v.name, v.path, v.content, title(v.name, v.description)) for v in variants),
        triplets=write_triplets(writer, splits, rules),
        val=val,
        test=(*test, abstract),
        unpaired=tuple(v.name for v in splits.train + splits.outside if v.content not in kept_out),
    )


def read_variants(folder: Path) -> list[Variant]:
    """All pictures in the folder, in the order of their characters.

    Raises:
        UserError: the folder's index is damaged.
    """
    contents = read_contents(folder)
    drawn = {code_points(characters): name for characters, name in catalogue().items() if code_points(characters) in contents}
    descriptions = complete(parse(name) for name in drawn.values())
    return [
        Variant(name, folder / f"{points}.png", described, contents[points])
        for (points, name), described in zip(drawn.items(), descriptions, strict=True)
    ]


def split_pictures(variants: Sequence[Variant], rules: Rules) -> Splits:
    """Deal the pictures to the splits.

    Args:
        variants: of all pictures, in a fixed order.
        rules: number of held-out roles, least variants, seed.

    Raises:
        UserError: there are fewer roles than are to be held out.
    """
    roles: defaultdict[str, list[Variant]] = defaultdict(list)
    for variant in variants:
        roles[variant.role].append(variant)
    large = sorted(role for role in roles if len(roles[role]) >= rules.min_variants)
    rng = random.Random(rules.split_seed)
    held_out = [role for role in large if role not in NEVER_HELD_OUT]
    rng.shuffle(held_out)
    if rules.held_out_roles >= len(held_out):
        raise UserError(f"data.held_out_roles is {rules.held_out_roles}, but only {len(held_out)} roles could be held out; set fewer")
    val_roles = round(rules.held_out_roles * HELD_OUT_VAL_SHARE)
    splits = Splits([], [], [], [], [], [v for v in variants if len(roles[v.role]) < rules.min_variants])
    for role in large:
        place = held_out.index(role) if role in held_out else len(held_out)
        if place < rules.held_out_roles:
            (splits.held_out_val if place < val_roles else splits.held_out_test).extend(roles[role])
        else:
            _split_role(roles[role], splits, rng)
    return splits


def _split_role(variants: list[Variant], splits: Splits, rng: random.Random) -> None:
    """Deal a seen role's pictures, twins together."""
    twins: defaultdict[str, list[Variant]] = defaultdict(list)
    for variant in variants:
        twins[variant.content].append(variant)
    groups = list(twins.values())
    rng.shuffle(groups)
    val, test = (max(1, round(share * len(groups))) for share in (VAL_SHARE, TEST_SHARE))
    for at, group in enumerate(groups):
        (splits.val if at < val else splits.test if at < val + test else splits.train).extend(group)


def difference(reference: Description, target: Description) -> dict[str, str]:
    """The edits that turn the reference into the target: kind (``role`` or a kind of attribute) -> the target's value.

    What the target's role does not have (nobody is bald among the clocks) needs no edit; what only it has must be said.
    """
    edits = {kind: value for kind, value in target.attributes.items() if reference.attributes.get(kind) != value}
    return edits if reference.role == target.role else {**edits, "role": target.role}


def apply(edits: dict[str, str], reference: Description, target: Description) -> Description:
    """What the edits, made to get to the target's role, turn this reference into."""
    attributes = {kind: edits.get(kind, reference.attributes.get(kind, "")) for kind in target.attributes}
    return Description(edits.get("role", reference.role), attributes)


class Writer:
    """Writes triplets and queries over one gallery.

    Args:
        gallery: the pictures that are ranked.
        role_edit_share: share of a target's examples whose reference shows another role.
    """

    def __init__(self, gallery: Sequence[Variant], role_edit_share: float) -> None:
        self.gallery, self.role_edit_share = gallery, role_edit_share
        self.by_key = {variant.description.key: variant for variant in gallery}
        self.by_role: defaultdict[str, list[Variant]] = defaultdict(list)
        self.twins: defaultdict[str, list[Variant]] = defaultdict(list)
        for variant in gallery:
            self.by_role[variant.role].append(variant)
            self.twins[variant.content].append(variant)

    def examples(
        self, targets: Sequence[Variant], references: Sequence[Variant], count: int, seed: str
    ) -> list[tuple[Variant, str, Variant]]:
        """Reference, caption and target of up to ``count`` examples for each target."""
        rng = random.Random(seed)
        roles = sorted({variant.role for variant in targets})
        relatives = {role: [one for one in references if one.role == role] for role in roles}
        strangers = {role: [one for one in references if one.role != role and _is_one_person(one)] for role in roles}
        out = []
        for target in targets:
            clear = partial(self.is_clear, target)
            wanted = round(count * self.role_edit_share) if _is_one_person(target) else 0
            chosen = draw(strangers[target.role], wanted, clear, rng)
            chosen += draw(relatives[target.role], count - len(chosen), clear, rng)
            for reference in chosen:
                edits = difference(reference.description, target.description)
                out.append((reference, caption(edits, reference.description, target.description, rng), target))
        return out

    def is_clear(self, target: Variant, reference: Variant) -> bool:
        """Whether one or two edits lead from the reference's pixels to the target's pixels and to no others.

        A reference may have a twin, such as a man and a person that are drawn alike; "now a judge" would then mean two pictures.
        """
        if reference.content == target.content:
            return False
        edits = difference(reference.description, target.description)
        if not 1 <= len(edits) <= MAX_EDITS:
            return False
        twins = self.twins[reference.content]
        if len(twins) == 1:
            return True
        readings = (self.by_key.get(apply(edits, twin.description, target.description).key) for twin in twins)
        return all(reading is None or reading.content == target.content for reading in readings)

    def answers(self, target: Variant) -> tuple[str, ...]:
        """Names of the target and of its twins."""
        return (target.name, *(twin.name for twin in self.twins[target.content] if twin is not target))

    def members(self, reference: Variant, target: Variant, seed: str) -> tuple[str, ...]:
        """Names of the reference, the target and its look-alikes: of its role first, then with the most attributes in common."""
        rng = random.Random(f"{seed}/{reference.name}/{target.name}")
        said = set(target.description.key)

        def look_alikes(variants: Sequence[Variant]) -> list[str]:
            other = [variant for variant in variants if variant.content not in (reference.content, target.content)]
            likeness = {variant.name: (-len(said & set(variant.description.key)), rng.random()) for variant in other}
            return sorted(likeness, key=likeness.__getitem__)[:LOOK_ALIKES]

        found = look_alikes(self.by_role[target.role])
        if len(found) < LOOK_ALIKES:
            found += look_alikes([variant for variant in self.gallery if variant.role != target.role])
        return (reference.name, target.name, *found[:LOOK_ALIKES])


def _is_one_person(variant: Variant) -> bool:
    return variant.description.attributes.get("gender") in ONE_GENDER


def draw(pool: Sequence[Variant], count: int, fits: Callable[[Variant], bool], rng: random.Random) -> list[Variant]:
    """Up to ``count`` of those that fit, at random; stops looking when it has them."""
    order = list(pool)
    found: list[Variant] = []
    for at in range(len(order)):
        if len(found) >= count:
            break
        other = rng.randrange(at, len(order))
        order[at], order[other] = order[other], order[at]
        if fits(order[at]):
            found.append(order[at])
    return found


def write_triplets(writer: Writer, splits: Splits, rules: Rules) -> tuple[Triplet, ...]:
    """The training triplets; both pictures of each are training pictures."""
    examples = writer.examples(splits.train, splits.train, rules.triplets_per_target, f"{rules.split_seed}/train")
    return tuple(Triplet(reference.name, text, target.name, target.role) for reference, text, target in examples)


def write_evaluation_sets(writer: Writer, splits: Splits, rules: Rules) -> tuple[tuple[EvaluationSet, ...], tuple[EvaluationSet, ...]]:
    """The evaluation sets ``emoji/seen`` and ``emoji/held_out`` of the splits val and test; a set without queries is left out."""
    gallery = tuple(variant.name for variant in writer.gallery)
    out: list[tuple[EvaluationSet, ...]] = []
    for split, seen, held_out in (("val", splits.val, splits.held_out_val), ("test", splits.test, splits.held_out_test)):
        parts = (
            ("seen", seen, splits.train, rules.queries_per_target),
            ("held_out", held_out, held_out, rules.queries_per_held_out_target),
        )
        sets = (
            EvaluationSet(
                f"emoji/{group}",
                _queries(writer, targets, references, count, f"{rules.split_seed}/{split}/{group}"),
                gallery,
                average="emoji/avg",
                protocol="reference removed, ties count against the model",
            )
            for group, targets, references, count in parts
        )
        out.append(tuple(evaluation for evaluation in sets if evaluation.queries))
    return out[0], out[1]


def _queries(writer: Writer, targets: list[Variant], references: list[Variant], count: int, seed: str) -> tuple[Query, ...]:
    examples = writer.examples(targets, references, count, seed)
    return tuple(
        Query(f"{number:04d}", reference.name, text, writer.answers(target), writer.members(reference, target, seed))
        for number, (reference, text, target) in enumerate(examples)
    )
