"""English for the embedded benchmark: relative captions and titles, written by rule from parsed emoji names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping

    from data_modules.emoji_names import Description

ONE_GENDER = ("man", "woman", "person")
_POINTING = ("arrow", "backhand index pointing", "hand", "fist", "pushing hand")
_TONE_WORDS = re.compile(r"_[a-z-]+_skin_tone")


@dataclass(frozen=True)
class Wording:
    """Ways to say one edit; ``{}`` or ``{0}`` stands for the wanted value, ``{1}`` for it as an adjective.

    Attributes:
        clauses: with a verb; two clauses of two edits can be joined by "and": "make it a man".
        fragments: stand alone, or first: "a man instead".
        tails: stand alone, or after a clause or a fragment: "with dark skin".
    """

    clauses: tuple[str, ...]
    fragments: tuple[str, ...]
    tails: tuple[str, ...] = ()

    def of(self, *values: str) -> Wording:
        """The wording with these values in its holes."""
        clauses, fragments, tails = (tuple(text.format(*values) for text in texts) for texts in (self.clauses, self.fragments, self.tails))
        return Wording(clauses, fragments, tails)


_WORDINGS = {
    "gender": Wording(("make it {0}", "make them {1}", "show {0} here"), ("{0} instead", "the same but {1}", "{0} this time")),
    "gendered noun": Wording(("make it {}", "change them to {}", "show {} here"), ("{} instead", "the same but as {}", "{} this time")),
    "genders": Wording(("make it {}", "change them to {}", "show {} here"), ("{} instead", "the same but with {}", "{} this time")),
    "tone": Wording(
        ("make the skin {}", "change the skin to {}", "change the skin tone to {}"),
        ("{} skin instead", "the same with {} skin"),
        ("with {} skin", "with a {} skin tone"),
    ),
    "hair": Wording(("give them {0}", "make their hair {1}"), ("{0} instead", "the same person with {0}"), ("with {0}",)),
    "bald": Wording(("make them bald", "shave their head"), ("a bald head instead", "the same person but bald"), ("with a bald head",)),
    "beard": Wording(("give them a beard", "add a beard"), ("the same person with a beard",), ("with a beard",)),
    "facing": Wording(
        ("make them face {}", "turn them to the {}", "have them look to the {}"),
        ("now facing {}", "the same but facing {}"),
        ("facing {}", "looking to the {}"),
    ),
    "pointing": Wording(
        ("make it point {}", "turn it so that it points {}"), ("the same but pointing {}", "now pointing {}"), ("pointing {}",)
    ),
    "thumbs": Wording(
        ("turn the thumb {}", "make it a thumbs {}"), ("a thumbs {} instead", "the same but with the thumb {}"), ("with the thumb {}",)
    ),
    "colour": Wording(("make it {}", "change the colour to {}", "paint it {}"), ("{} instead", "the {} one", "the same in {}"), ("in {}",)),
    "time": Wording(("set it to {}", "make it show {}", "turn the hands to {}"), ("{} instead", "the same clock at {}"), ("at {}",)),
    "phase": Wording(("make it a {} moon", "change it to a {} moon"), ("a {} moon instead", "the {} moon")),
    "noun": Wording(("turn them into {}", "make them {}"), ("{} instead", "now {}", "the same but as {}"), ("as {}",)),
    "activity": Wording(("show them {}", "change the picture to someone {}"), ("now {}", "{} instead", "the same person {}"), ("{}",)),
    "state": Wording(("make them {}", "show someone {}"), ("the same but {}", "{} instead"), ("who is {}",)),
}
_GENDERS = {"man": ("a man", "male"), "woman": ("a woman", "female"), "person": ("a gender-neutral person", "gender-neutral")}
_TWO_GENDERS = {
    "man and man": "two men", "woman and woman": "two women", "woman and man": "a woman and a man",
    "person and person": "two gender-neutral people",
}  # fmt: skip
_GENDERED_NOUNS = {
    "adult": ("an ordinary man", "an ordinary woman", "an ordinary person"),
    "child": ("a boy", "a girl", "a gender-neutral child"),
    "elder": ("an old man", "an old woman", "an older gender-neutral person"),
    "royalty": ("a prince", "a princess", "a gender-neutral person with a crown"),
    "merfolk": ("a merman", "a mermaid", "a gender-neutral merperson"),
    "Claus": ("Santa Claus", "Mrs. Claus", "a gender-neutral Santa"),
}
_ACTIVITIES = {
    "bouncing ball": "bouncing a ball", "feeding baby": "feeding a baby", "getting haircut": "getting a haircut",
    "getting massage": "getting a massage", "gesturing NO": "gesturing no", "in lotus position": "in the lotus position",
    "in manual wheelchair": "in a manual wheelchair", "in motorized wheelchair": "in a motorized wheelchair",
    "in steamy room": "in a steamy room", "in suit levitating": "levitating in a suit", "in tuxedo": "in a tuxedo",
    "raising hand": "raising a hand", "rowing boat": "rowing a boat", "taking bath": "taking a bath", "tipping hand": "tipping a hand",
    "wearing turban": "wearing a turban", "with headscarf": "with a headscarf", "with skullcap": "with a skullcap",
    "with veil": "with a veil", "with white cane": "with a white cane",
}  # fmt: skip
_STATES = ("deaf", "pregnant")
_DIRECTIONS = {
    "up-left": "up and to the left", "up-right": "up and to the right", "down-left": "down and to the left",
    "down-right": "down and to the right", "left-right": "both left and right", "up-down": "both up and down",
}  # fmt: skip
_FIRST = ("gender", "role", "hair", "direction", "tone")  # which of two edits may carry the other as its tail


def with_article(noun: str) -> str:
    """``an office worker``, ``a judge``."""
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def is_activity(role: str) -> bool:
    """Whether a role reads as what somebody does or has on ("running", "in tuxedo") and not as what somebody is ("cook")."""
    return role.startswith(("in ", "with ")) or any(word.endswith("ing") for word in role.split())


def wording(kind: str, value: str, target: Description, was: str = "") -> Wording:
    """The ways to say one edit.

    Args:
        kind: ``role`` or a kind of attribute (:class:`data_modules.emoji_names.Description`).
        value: the wanted value.
        target: the wanted picture.
        was: the reference's value; empty if it has none.
    """
    if kind == "gender":
        return _gender_wording(value, target)
    if kind == "role":
        return _role_wording(value, target)
    if kind == "hair":
        return _hair_wording(value, was)
    if kind == "direction":
        name = "thumbs" if target.role == "thumbs" else "pointing" if target.role in _POINTING else "facing"
        return _WORDINGS[name].of(_DIRECTIONS.get(value, value))
    return _WORDINGS[kind].of(value)


def _gender_wording(value: str, target: Description) -> Wording:
    if value not in ONE_GENDER:
        return _WORDINGS["genders"].of(_TWO_GENDERS[value])
    if target.role in _GENDERED_NOUNS and target.role != "adult":
        return _WORDINGS["gendered noun"].of(_GENDERED_NOUNS[target.role][ONE_GENDER.index(value)])
    return _WORDINGS["gender"].of(*_GENDERS[value])


def _role_wording(role: str, target: Description) -> Wording:
    if role in _STATES:
        return _WORDINGS["state"].of(role)
    if is_activity(role):
        return _WORDINGS["activity"].of(_ACTIVITIES.get(role, role))
    if role in _GENDERED_NOUNS:
        return _WORDINGS["noun"].of(_GENDERED_NOUNS[role][ONE_GENDER.index(target.attributes["gender"])])
    return _WORDINGS["noun"].of(with_article(role))


def _hair_wording(value: str, was: str) -> Wording:
    noun = "a bald head" if value == "bald" else value
    if was == "beard" and value == "ordinary hair":
        return Wording(("remove the beard", "shave off the beard"), ("the same person without the beard",), ("without the beard",))
    if was == "beard":
        return Wording((f"replace the beard with {noun}",), (f"{noun} instead of the beard",), (f"with {noun} and no beard",))
    return _WORDINGS[value] if value in _WORDINGS else _WORDINGS["hair"].of(value, value.removesuffix(" hair"))


def caption(edits: Mapping[str, str], reference: Description, target: Description, rng: random.Random) -> str:
    """The relative caption of one or two edits.

    Args:
        edits: kind (``role`` or a kind of attribute) -> wanted value.
        reference: what is to be changed.
        target: the wanted picture.
        rng: chooses among the wordings.
    """
    said = dict(edits)
    if "role" in edits and target.role in _GENDERED_NOUNS:
        said.pop("gender", None)  # "turn them into a princess" says it
    kinds = sorted(said, key=lambda kind: _FIRST.index(kind) if kind in _FIRST else 0)
    wordings = [wording(kind, said[kind], target, reference.attributes.get(kind, "")) for kind in kinds]
    if len(wordings) == 1:
        return rng.choice(wordings[0].clauses + wordings[0].fragments + wordings[0].tails)
    first, second = wordings
    if not second.tails or rng.random() < 1 / 3:
        joined = [rng.choice(first.clauses), rng.choice(second.clauses)]
        rng.shuffle(joined)
        return " and ".join(joined)
    start, tail = rng.choice(first.clauses + first.fragments), rng.choice(second.tails)
    if " with " in start and tail.startswith("with "):
        return f"{start} and {tail.removeprefix('with ')}"
    return f"{start}, {tail}"


def title(name: str, description: Description) -> str:
    """What a picture shows in plain words: ``woman firefighter dark skin``.

    Args:
        name: of the emoji, as in :func:`data_modules.emoji_names.parse`.
        description: completed (:func:`data_modules.emoji_names.complete`).
    """
    attributes = description.attributes
    if "time" in attributes:
        return attributes["time"]
    words = " ".join(_TONE_WORDS.sub("", name).replace("\u2019", "'").replace("_", " ").split())
    if attributes.get("gender") == "person" and "person" not in words:
        words = f"person {words}"
    if attributes.get("direction") == "left" and "left" not in words:
        words += " facing left"
    return f"{words} {attributes['tone']} skin" if "tone" in attributes else words
