"""Relative captions written by rule from the difference of two parsed emoji names."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

_GENDERS = {
    "man": ("make it a man", "a man instead", "the same but male", "as a man", "show a man doing this"),
    "woman": ("make it a woman", "a woman instead", "the same but female", "as a woman", "show a woman doing this"),
    "person": ("make it gender-neutral", "a person of no stated gender", "neither man nor woman", "as a neutral person"),
    "man and man": ("make it two men", "both of them men", "with two men instead"),
    "woman and woman": ("make it two women", "both of them women", "with two women instead"),
    "woman and man": ("make it a woman and a man", "one woman and one man", "with a woman and a man instead"),
    "person and person": ("make it two people of no stated gender", "both gender-neutral", "two neutral people instead"),
}
_WORDINGS = {
    "tone": ("with {} skin", "give {} skin tone", "change the skin to {}", "the skin should be {}", "{} skin tone"),
    "hair": ("with {}", "give them {}", "change the hair: {}", "the same person, {}"),
    "facing": ("facing {}", "turned to the {}", "looking {}", "now facing the {} side"),
    "pointing": ("pointing {}", "make it point {}", "turn it so that it points {}", "direction: {}"),
    "colour": ("in {}", "make it {}", "the {} one", "change the colour to {}"),
    "time": ("at {}", "set it to {}", "make it show {}", "the time should be {}"),
    "phase": ("as a {} moon", "in the {} phase", "make it the {} moon", "change the phase to {}"),
    "noun": ("make it a {}", "a {} instead", "change the role to {}", "the same one as a {}", "now a {}"),
    "activity": ("{} instead", "the same one, {}", "now {}", "make it someone {}"),
}
_UNSAID = {
    "tone": "yellow",  # the picture without a skin tone
    "hair": "ordinary hair",
    "direction": "left",  # people without "facing right" look left
}
_JOINS = ("{} and {}", "{}, {}", "{}, also {}", "{}; {}")
_ACTIVITY_STARTS = ("in ", "with ", "wearing ", "getting ", "gesturing ", "playing ", "raising ", "taking ")


def is_activity(role: str) -> bool:
    """Whether a role reads as what somebody does or has on ("running", "in tuxedo") and not as what somebody is ("cook")."""
    return role.startswith(_ACTIVITY_STARTS) or role.split()[0].endswith("ing") or role in {"deaf", "pregnant"}


def phrase(kind: str, value: str | None, role: str, rng: random.Random) -> str:
    """One natural wording of one edit.

    Args:
        kind: ``role`` or a kind of attribute (:class:`data_modules.emoji_names.Description`).
        value: the wanted value; None where the wanted picture does not have this kind of attribute.
        role: role of the wanted picture.
        rng: chooses the wording.
    """
    if kind == "gender":
        return rng.choice(_GENDERS[str(value)])
    word = value or _UNSAID[kind]
    if kind == "role":
        kind = "activity" if is_activity(word) else "noun"
    elif kind == "direction":
        kind = "pointing" if role in {"arrow", "thumbs", "backhand index pointing", "hand", "fist", "pushing hand"} else "facing"
    return rng.choice(_WORDINGS[kind]).format(word)


def caption(edits: dict[str, str | None], role: str, rng: random.Random) -> str:
    """The relative caption of one or two edits, in random order and wording."""
    parts = [phrase(kind, value, role, rng) for kind, value in edits.items()]
    rng.shuffle(parts)
    return rng.choice(_JOINS).format(*parts) if len(parts) == 2 else parts[0]  # noqa: PLR2004 - a pair
