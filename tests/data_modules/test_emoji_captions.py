from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING

import pytest

from data_modules.emoji_captions import caption, is_activity, title, with_article, wording
from data_modules.emoji_names import Description, complete, parse
from data_modules.emoji_queries import difference

if TYPE_CHECKING:
    from data_modules.emoji import EmojiCIR


def every_caption(reference: str, target: str, *others: str) -> set[str]:
    """All captions that 300 draws find, of two names among others that show what kinds of attributes the roles have."""
    before, after, *_ = complete(parse(name) for name in (reference, target, *others))
    edits = difference(before, after)
    return {caption(edits, before, after, random.Random(seed)) for seed in range(300)}


TONES = ("man_judge_dark_skin_tone", "man_running_dark_skin_tone", "man_light_skin_tone_red_hair", "princess_dark_skin_tone")
SAYS = [
    ("man_judge", "woman_judge", {"make it a woman", "a woman instead", "the same but female"}),
    ("woman_judge", "judge", {"make it a gender-neutral person", "the same but gender-neutral"}),
    ("prince", "princess", {"make it a princess", "a princess instead"}),
    ("boy", "girl", {"make it a girl", "the same but as a girl"}),
    ("men_wrestling", "women_wrestling", {"make it two women", "two women instead"}),
    ("man_judge_dark_skin_tone", "man_judge", {"with yellow skin", "change the skin to yellow"}),
    ("man_judge", "man_astronaut", {"turn them into an astronaut", "an astronaut instead", "as an astronaut"}),
    ("man_judge", "man_in_tuxedo", {"now in a tuxedo", "show them in a tuxedo"}),
    ("man_judge", "man_mountain_biking", {"now mountain biking", "mountain biking instead"}),
    ("man_judge", "deaf_man", {"make them deaf", "who is deaf"}),
    ("woman_judge", "old_woman", {"turn them into an old woman", "an old woman instead"}),
    ("man_red_hair", "man_bald", {"make them bald", "the same person but bald"}),
    ("man_beard", "man", {"without the beard", "remove the beard"}),
    ("man_beard", "man_curly_hair", {"replace the beard with curly hair", "with curly hair and no beard"}),
    ("man_red_hair", "man_white_hair", {"make their hair white", "with white hair"}),
    ("man_running", "man_running_facing_right", {"facing right", "now facing right"}),
    ("thumbs_up", "thumbs_down", {"turn the thumb down", "a thumbs down instead"}),
    ("up_arrow", "up-left_arrow", {"pointing up and to the left", "make it point up and to the left"}),
    ("red_heart", "light_blue_heart", {"in light blue", "the light blue one"}),
    ("one_o\u2019clock", "two-thirty", {"set it to half past two", "at half past two"}),
    ("new_moon", "full_moon", {"make it a full moon", "the full moon"}),
    ("judge", "person_with_white_cane_dark_skin_tone", {"show them with a white cane and dark skin"}),
    ("man_judge", "princess", {"turn them into a princess", "a princess instead", "as a princess"}),
]


@pytest.mark.parametrize(("reference", "target", "expected"), SAYS)
def test_wordings(reference: str, target: str, expected: set[str]):
    said = every_caption(reference, target, *TONES, "judge_dark_skin_tone", "man_bald", "man_running_facing_right")
    assert expected <= said
    assert len(said) >= 3


def test_two_edits_are_joined_in_several_ways():
    said = every_caption("man_judge", "woman_judge_dark_skin_tone")
    assert {"make it a woman and change the skin to dark", "change the skin to dark and make it a woman"} <= said
    assert {"make it a woman, with dark skin", "a woman instead, with a dark skin tone"} <= said
    assert len(said) > 20


@pytest.mark.parametrize(
    ("noun", "expected"), [("judge", "a judge"), ("astronaut", "an astronaut"), ("elf", "an elf"), ("office worker", "an office worker")]
)
def test_articles(noun: str, expected: str):
    assert with_article(noun) == expected


def test_activities_are_not_nouns():
    assert all(map(is_activity, ("running", "in bed", "playing water polo", "wearing turban", "gesturing OK", "mountain biking")))
    assert not any(map(is_activity, ("cook", "judge", "ballet dancer", "police officer", "adult")))


def test_every_wording_is_complete():
    described = Description("clock", {})
    for kind, value in (("tone", "dark"), ("hair", "red hair"), ("colour", "red"), ("time", "one o'clock"), ("phase", "full")):
        ways = wording(kind, value, described)
        assert all("{" not in text for text in ways.clauses + ways.fragments + ways.tails)


NO_ARTICLE = re.compile(
    r"\b(in|with|wearing|taking|getting|feeding|raising|tipping|rowing|bouncing) "
    r"(tuxedo|steamy|lotus|veil|turban|bath|haircut|massage|baby|hand|boat|ball|white cane)\b"
)


def test_captions_of_the_benchmark_are_plain_english(emoji: EmojiCIR):
    captions = {triplet.caption for triplet in emoji.triplets}
    captions |= {query.caption for split in ("val", "test") for one in emoji.evaluation_sets(split) for query in one.queries}  # type: ignore[arg-type]
    assert len(captions) > 3000
    for text in captions:
        assert re.fullmatch(r"[A-Za-z' .,-]+", text), text
        assert not re.search(r"\ba [aeio]|\ban (?!hour)[^aeiou]|\b(\w+) \1\b| {2}|None", text), text
        assert not NO_ARTICLE.search(text), text
        assert not re.search(r"\ban? (\w+ )?\w+ing($|,| and | instead)", text), text  # what somebody does, taken for what somebody is


TITLES = {
    "woman_firefighter_dark_skin_tone": "woman firefighter dark skin",
    "firefighter": "person firefighter yellow skin",
    "person_running_facing_right": "person running facing right yellow skin",
    "man_running_medium-light_skin_tone": "man running facing left medium-light skin",
    "man_dark_skin_tone_bald": "man bald dark skin",
    "deaf_person": "deaf person yellow skin",
    "raised_fist": "raised fist yellow skin",
    "three_o\u2019clock": "three o'clock",
    "one-thirty": "half past one",
    "green_book": "green book",
    "left_arrow": "left arrow",
    "genie": "person genie",
}


def test_titles(emoji: EmojiCIR):
    titles = {picture.name: picture.title for picture in emoji.pictures}
    assert {name: titles[name] for name in TITLES} == TITLES
    assert all(re.fullmatch(r"\S+( \S+)*", text) for text in titles.values())
    assert not any("skin tone" in text or "_" in text for text in titles.values())


def test_title_of_a_lone_name():
    assert title("pizza", parse("pizza")) == "pizza"
