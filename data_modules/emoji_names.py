"""What an emoji's name says: its role and its attributes.

The package ``emoji`` gives every emoji a name such as ``woman_firefighter_medium-dark_skin_tone``. :func:`parse` takes the attribute words
out of it (gender, skin tone, hair, direction, colour, time, phase) and calls what is left the *role*. Two pictures of one role
differ in attributes only, which is what a relative caption can say. :func:`complete` adds what names leave unsaid.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
COLOURS = ("red", "orange", "yellow", "green", "light blue", "blue", "purple", "brown", "black", "white", "grey", "pink")
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
MOON_PHASES = ("new", "waxing crescent", "first quarter", "waxing gibbous", "full", "waning gibbous", "last quarter", "waning crescent")

_TONE = re.compile(rf"({'|'.join(sorted(TONES, key=len, reverse=True))}) skin tone")
_HAIR = re.compile(r"\b((?:blond|red|curly|white) hair|bald|beard)\b")
_FACING = re.compile(r"\bfacing right\b")
_GENDER_WORDS = {
    "man": "man", "woman": "woman", "person": "person",
    "men": "man and man", "women": "woman and woman", "people": "person and person",
}  # fmt: skip
_GENDERED_NAMES = {
    "prince": ("royalty", "man"), "princess": ("royalty", "woman"), "person with crown": ("royalty", "person"),
    "merman": ("merfolk", "man"), "mermaid": ("merfolk", "woman"), "merperson": ("merfolk", "person"),
    "Santa Claus": ("Claus", "man"), "Mrs. Claus": ("Claus", "woman"), "Mx Claus": ("Claus", "person"),
    "old man": ("elder", "man"), "old woman": ("elder", "woman"), "older person": ("elder", "person"),
    "boy": ("child", "man"), "girl": ("child", "woman"), "child": ("child", "person"),
    "man": ("adult", "man"), "woman": ("adult", "woman"), "person": ("adult", "person"),
    "ballet dancer": ("ballet dancer", "person"),
    "woman and man holding hands": ("holding hands", "woman and man"),
    "man and woman holding hands": ("holding hands", "woman and man"),
}  # fmt: skip
_PAIR = re.compile(r"^(kiss|couple with heart)(?: (woman|man|person) (woman|man|person))?$")
_CLOCK = re.compile(rf"^({'|'.join(NUMBERS)})(?:[ -](?:o['\u2019]clock|thirty))$")
_WITH_VALUE = tuple(
    (re.compile(f"^{pattern}$"), kind)
    for pattern, kind in (
        (rf"(?P<value>{'|'.join(COLOURS)}) (?P<role>circle|square|heart|book|apple)", "colour"),
        (rf"(?P<value>{'|'.join(MOON_PHASES)}) (?P<role>moon)", "phase"),
        (r"(?P<value>up|up-right|right|down-right|down|down-left|left|up-left|up-down|left-right) (?P<role>arrow)", "direction"),
        (r"(?P<role>backhand index pointing) (?P<value>up|down|left|right)", "direction"),
        (r"(?P<value>left|right)(?:wards|-facing) (?P<role>(?:pushing )?hand|fist)", "direction"),
        (r"(?P<role>thumbs) (?P<value>up|down)", "direction"),
    )
)
_UNSAID = {
    "gender": "person",
    "tone": "yellow",
    "hair": "ordinary hair",
    "direction": "left",  # people without "facing right" look left
}


@dataclass(frozen=True)
class Description:
    """The parsed name.

    Attributes:
        role: what the picture shows, apart from its attributes: ``firefighter``.
        attributes: kind (``gender``, ``tone``, ``left_tone``, ``right_tone``, ``hair``, ``direction``, ``colour``, ``time``,
            ``phase``) -> value. A gender is ``man``, ``woman``, ``person`` or two of these: ``woman and man``.
    """

    role: str
    attributes: dict[str, str] = field(default_factory=dict)

    @cached_property
    def key(self) -> tuple[str, ...]:
        """Role and attributes as a hashable value: equal for pictures that no caption can tell apart."""
        return (self.role, *(f"{kind}={value}" for kind, value in sorted(self.attributes.items())))


def parse(name: str) -> Description:
    """Split an emoji's name into role and attributes.

    Args:
        name: as in ``emoji.EMOJI_DATA``, without colons: words joined by underscores.
    """
    text = name.replace("_", " ")
    attributes: dict[str, str] = {}
    tones = _TONE.findall(text)
    text = _TONE.sub("", text)
    if len(tones) == 1:
        attributes["tone"] = tones[0]
    elif len(tones) == 2:  # two people, left and right
        attributes["left_tone"], attributes["right_tone"] = tones
    for kind, pattern, value in (("hair", _HAIR, None), ("direction", _FACING, "right")):
        if match := pattern.search(text):
            attributes[kind] = value or match[0]
            text = text[: match.start()] + text[match.end() :]
    text = " ".join(text.replace(":", " ").replace(",", " ").split())
    role, more = _role(text)
    return Description(role, {**attributes, **more})


def _role(text: str) -> tuple[str, dict[str, str]]:
    """Role and the attributes that stand in the noun itself."""
    if text.startswith("family"):  # its men, women and children are not an attribute that a caption changes
        return text, {}
    if text in _GENDERED_NAMES:
        role, gender = _GENDERED_NAMES[text]
        return role, {"gender": gender}
    if match := _PAIR.match(text):
        return match[1], {"gender": f"{match[2]} and {match[3]}" if match[2] else "person and person"}
    if match := _CLOCK.match(text):
        return "clock", {"time": f"half past {match[1]}" if "thirty" in text else f"{match[1]} o'clock"}
    for pattern, kind in _WITH_VALUE:
        if match := pattern.match(text):
            return match["role"], {kind: match["value"]}
    words = text.split()
    for at, word in enumerate(words):
        if word in _GENDER_WORDS and len(words) > 1:
            return " ".join(words[:at] + words[at + 1 :]), {"gender": _GENDER_WORDS[word]}
    return text, {}


def complete(described: Iterable[Description]) -> list[Description]:
    """Give all pictures of a role the same kinds of attributes, in the order given.

    A name says only what is special: ``judge`` beside ``woman_judge`` is a person, no skin tone is yellow skin, a runner without "facing
    right" looks left. Which kinds a role has shows only in all its names together.
    """
    described = list(described)
    kinds: defaultdict[str, set[str]] = defaultdict(set)
    for one in described:
        kinds[one.role].update(one.attributes)
    return [
        Description(one.role, {kind: _UNSAID[kind] for kind in sorted(kinds[one.role] & _UNSAID.keys())} | one.attributes)
        for one in described
    ]
