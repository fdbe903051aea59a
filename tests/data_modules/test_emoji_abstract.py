"""The group of abstract captions: its tables name what is drawn, list right answers, and touch nothing else."""

import re
from collections import Counter

import pytest

from data_modules.emoji import EmojiCIR
from data_modules.emoji_abstract import write_abstract
from data_modules.emoji_queries import read_variants
from data_modules.emoji_relations import GROUPS, RELATIONS
from data_modules.emoji_render import ensure_pictures


@pytest.fixture(scope="module")
def variants(tmp_path_factory):
    return read_variants(ensure_pictures(tmp_path_factory.mktemp("emoji"), 32))


@pytest.fixture(scope="module")
def abstract(variants):
    return write_abstract(variants)


def test_every_word_of_the_tables_is_drawn(variants):
    names, roles = {variant.name.replace("\u2019", "'") for variant in variants}, {variant.role.replace(" ", "_") for variant in variants}
    words = [word for _, lines in RELATIONS.values() for word in re.findall(r"[^\s:]+", lines)]
    assert [word for word in words if word.startswith("@") and word[1:].partition("/")[0] not in roles] == []
    assert [word for word in words if not word.startswith("@") and word not in GROUPS and word not in names] == []
    assert [word for group in GROUPS.values() for word in group.split() if word not in names] == []
    assert [group for group in GROUPS if not any(re.search(rf"\b{group}\b", lines) for _, lines in RELATIONS.values())] == []


def test_at_least_150_queries_of_many_kinds(abstract):
    kinds = Counter(query.id.rpartition("-")[0] for query in abstract.queries)
    assert len(abstract.queries) >= 150
    assert len(kinds) == len(RELATIONS) + 3
    assert min(kinds.values()) >= 5
    assert len({query.id for query in abstract.queries}) == len(abstract.queries)
    assert len({(query.reference, query.caption) for query in abstract.queries}) == len(abstract.queries)


def test_answers_are_of_the_gallery_and_never_the_reference(abstract, variants):
    contents = {variant.name: variant.content for variant in variants}
    assert set(abstract.gallery) == contents.keys()
    for query in abstract.queries:
        assert query.targets
        assert len(set(query.targets)) == len(query.targets)
        assert contents[query.reference] not in {contents[target] for target in query.targets}
        pixels = {contents[target] for target in query.targets}
        assert set(query.targets) == {name for name, content in contents.items() if content in pixels}  # twins are right, too


def test_cycles_by_hand(abstract):
    found = {
        (query.reference, query.caption): query.targets for query in abstract.queries if query.id.startswith(("moon", "arrow", "clock"))
    }
    assert found["twelve_o\u2019clock", "half an hour earlier"] == ("eleven-thirty",)
    assert found["one_o\u2019clock", "an hour later"] == ("two_o\u2019clock",)
    assert found["eleven-thirty", "three hours later"] == ("two-thirty",)
    assert found["two-thirty", "five hours earlier"] == ("nine-thirty",)
    assert found["new_moon", "a week later"] == ("first_quarter_moon",)
    assert found["up_arrow", "in the opposite direction"] == ("down_arrow",)
    assert len(found) == 24 + 8 + 8


def test_all_ears_are_right_for_headphones(abstract):
    (query,) = [query for query in abstract.queries if query.reference == "headphone"]
    assert {"ear", "ear_dark_skin_tone"} <= set(query.targets)
    assert not any("hearing_aid" in target for target in query.targets)


def test_it_is_said_in_no_training_and_chooses_no_checkpoint(tmp_path):
    data = EmojiCIR(str(tmp_path), image_size=32)
    data.prepare_data()
    benchmark = data.read()
    *others, abstract = benchmark.test
    assert abstract.name == "emoji/abstract"
    assert [one.name for one in others] == ["emoji/seen", "emoji/held_out"]
    assert [one.name for one in benchmark.val] == ["emoji/seen", "emoji/held_out"]
    assert (abstract.average, {one.average for one in others}) == ("", {"emoji/avg"})
    assert {query.caption for query in abstract.queries}.isdisjoint(triplet.caption for triplet in benchmark.triplets)
