from __future__ import annotations

import pytest

from data_modules.emoji_names import Description, complete, parse

TABLE = {
    "woman_firefighter_medium-dark_skin_tone": ("firefighter", {"gender": "woman", "tone": "medium-dark"}),
    "firefighter": ("firefighter", {}),
    "person_running_facing_right_light_skin_tone": ("running", {"gender": "person", "direction": "right", "tone": "light"}),
    "man_running": ("running", {"gender": "man"}),
    "man_dark_skin_tone_beard": ("adult", {"gender": "man", "tone": "dark", "hair": "beard"}),
    "woman_curly_hair": ("adult", {"gender": "woman", "hair": "curly hair"}),
    "person_medium_skin_tone_bald": ("adult", {"gender": "person", "tone": "medium", "hair": "bald"}),
    "girl": ("child", {"gender": "woman"}),
    "old_man_light_skin_tone": ("elder", {"gender": "man", "tone": "light"}),
    "person_with_crown": ("royalty", {"gender": "person"}),
    "Mx_Claus_dark_skin_tone": ("Claus", {"gender": "person", "tone": "dark"}),
    "mermaid": ("merfolk", {"gender": "woman"}),
    "deaf_woman": ("deaf", {"gender": "woman"}),
    "men_wrestling_medium-light_skin_tone": ("wrestling", {"gender": "man and man", "tone": "medium-light"}),
    "people_holding_hands": ("holding hands", {"gender": "person and person"}),
    "woman_and_man_holding_hands_dark_skin_tone": ("holding hands", {"gender": "woman and man", "tone": "dark"}),
    "kiss_woman_woman": ("kiss", {"gender": "woman and woman"}),
    "couple_with_heart": ("couple with heart", {"gender": "person and person"}),
    "handshake_light_skin_tone_dark_skin_tone": ("handshake", {"left_tone": "light", "right_tone": "dark"}),
    "family_man_woman_boy": ("family man woman boy", {}),
    "three_o\u2019clock": ("clock", {"time": "three o'clock"}),
    "twelve-thirty": ("clock", {"time": "half past twelve"}),
    "light_blue_heart": ("heart", {"colour": "light blue"}),
    "green_book": ("book", {"colour": "green"}),
    "waxing_gibbous_moon": ("moon", {"phase": "waxing gibbous"}),
    "up-left_arrow": ("arrow", {"direction": "up-left"}),
    "backhand_index_pointing_down_dark_skin_tone": ("backhand index pointing", {"direction": "down", "tone": "dark"}),
    "leftwards_pushing_hand": ("pushing hand", {"direction": "left"}),
    "right-facing_fist": ("fist", {"direction": "right"}),
    "thumbs_up": ("thumbs", {"direction": "up"}),
    "man_in_motorized_wheelchair_facing_right": ("in motorized wheelchair", {"gender": "man", "direction": "right"}),
    "red_hair": ("", {"hair": "red hair"}),
    "woman\u2019s_hat": ("woman\u2019s hat", {}),
    "pizza": ("pizza", {}),
}


@pytest.mark.parametrize("name", TABLE)
def test_names(name: str):
    role, attributes = TABLE[name]
    assert parse(name) == Description(role, attributes)


def test_unsaid_attributes_are_filled_by_role():
    names = ("judge", "woman_judge_dark_skin_tone", "man_running_facing_right", "man_running", "man", "man_red_hair", "pizza", "girl")
    assert [one.attributes for one in complete(parse(name) for name in names)] == [
        {"gender": "person", "tone": "yellow"},
        {"gender": "woman", "tone": "dark"},
        {"gender": "man", "direction": "right"},
        {"gender": "man", "direction": "left"},
        {"gender": "man", "hair": "ordinary hair"},
        {"gender": "man", "hair": "red hair"},
        {},
        {"gender": "woman"},
    ]


def test_key_tells_descriptions_apart_whatever_the_order_of_their_attributes():
    assert Description("a", {"x": "1", "y": "2"}).key == Description("a", {"y": "2", "x": "1"}).key
    assert Description("a", {"x": "1"}).key != Description("a", {"x": "2"}).key != Description("b", {"x": "2"}).key
