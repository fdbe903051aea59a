"""Edits and their kinds, read off captions by rule."""

import pytest

from data_modules.caption_kinds import KINDS, OTHER, count_edits, kinds


@pytest.mark.parametrize(
    ("caption", "count", "found"),
    [
        ("is shorter and has red stripes", 2, ("colour", "pattern", "size", "addition")),
        ("Remove the dog, zoom in, and make it darker.", 3, ("colour", "place and view", "removal", "degree")),
        ("a corgi", 1, (OTHER,)),
        ("has two dogs standing", 1, ("count", "addition", "state or action")),
        ("", 1, (OTHER,)),
        ("sandy redwood", 1, (OTHER,)),  # words within words do not count
    ],
)
def test_edits_and_kinds(caption, count, found):
    assert count_edits(caption) == count
    assert [kind for kind in kinds(caption) if kind != "degree"] == [kind for kind in found if kind != "degree"]


def test_every_kind_can_be_found():
    captions = ["in red", "with stripes", "two of them", "longer", "facing left", "without it", "add a hat", "more", "is standing"]
    assert {kind for caption in captions for kind in kinds(caption)} >= set(KINDS)
