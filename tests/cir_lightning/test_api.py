"""The Python API with the packaged weights on real pictures."""

from pathlib import Path

import pytest
import torch

from cir_lightning import load
from cir_lightning.api import Retriever
from data_modules.emoji_render import draw
from data_modules.errors import UserError

EMOJI = {
    "man firefighter": "👨‍🚒",
    "woman firefighter": "👩‍🚒",
    "woman firefighter dark": "👩🏿‍🚒",
    "woman pilot": "👩‍✈️",
    "woman artist": "👩‍🎨",
    "man artist dark": "👨🏿‍🎨",
    "red apple": "🍎",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of emoji."""
    folder = tmp_path_factory.mktemp("emoji")
    for name, characters in EMOJI.items():
        draw(characters, 160).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def model(converted):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CIR_CACHE", str(converted))
        return load("emoji")


def others(folder, *but):
    return [folder / f"{name}.png" for name in EMOJI if name not in but]


@pytest.mark.parametrize(
    ("reference", "caption", "answer"),
    [
        ("man firefighter", "make it a woman", "woman firefighter"),
        ("woman firefighter", "with dark skin", "woman firefighter dark"),
    ],
)
def test_it_finds_what_is_asked_for(model, folder, reference, caption, answer):
    ranked = model.rank(folder / f"{reference}.png", caption, [folder / f"{name}.png" for name in EMOJI])
    assert Path(ranked[0].path).stem == answer
    assert len(ranked) == len(EMOJI) - 1  # without the reference
    assert [match.score for match in ranked] == sorted((match.score for match in ranked), reverse=True)


def test_ranking_is_the_cosine_of_what_is_encoded(model, folder):
    paths = others(folder, "man firefighter")
    query = model.encode_query(str(folder / "man firefighter.png"), "make it a woman")
    vectors = model.encode_pictures(path for path in paths)
    assert query.shape == (256,)
    assert vectors.shape == (len(paths), 256)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(paths)))
    scores = dict(zip(map(str, paths), (vectors @ query).tolist(), strict=True))
    ranked = model.rank(folder / "man firefighter.png", "make it a woman", paths, top=3)
    assert ranked == [(path, pytest.approx(score)) for path, score in sorted(scores.items(), key=lambda item: -item[1])[:3]]


@pytest.mark.parametrize("caption", ["", "  \n", None, ["red"]])
def test_captions_that_say_nothing(model, folder, caption):
    with pytest.raises(UserError, match=r"the caption is .*; say in words how the wanted picture differs"):
        model.encode_query(folder / "red apple.png", caption)


@pytest.mark.parametrize("caption", ["red \ud83d", "red\0"])
def test_captions_that_are_no_text(model, folder, caption):
    with pytest.raises(UserError, match=r"the caption 'red.* has a NUL or half of a character; write it as text"):
        model.encode_query(folder / "red apple.png", caption)


def test_a_caption_that_is_too_long(model, folder):
    with pytest.raises(UserError, match=r"the caption 'red red .*'\.\.\. has 61 words; say it in 60 at most"):
        model.encode_query(folder / "red apple.png", "red " * 61)


@pytest.mark.parametrize("pictures", ["a.png", Path("a.png"), [], ()])
def test_pictures_that_are_no_list(model, folder, pictures):
    for call in (lambda: model.encode_pictures(pictures), lambda: model.rank(folder / "red apple.png", "green", pictures)):
        with pytest.raises(UserError, match=r"pictures=.* is no list of pictures; give at least one path, in a list"):
            call()


def test_what_cannot_be_ranked(model, folder):
    apple = folder / "red apple.png"
    with pytest.raises(UserError, match=r"no picture to rank besides the query's own, '.*red apple\.png'; give others"):
        model.rank(apple, "green", [apple])
    with pytest.raises(UserError, match="top=0 pictures were asked for; set it to 1 or more"):
        model.rank(apple, "green", others(folder), top=0)
    with pytest.raises(UserError, match=r"no picture file .*nowhere\.png"):
        model.rank(apple, "green", [folder / "nowhere.png"])


def test_weights_that_there_are_not(tmp_path):
    with pytest.raises(UserError, match=r"no weights at 'emojj': .*\(emoji\)"):
        load("emojj")
    (tmp_path / "a.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(UserError, match=r"a\.safetensors holds no readable weights"):
        load(tmp_path / "a.safetensors")


def test_load_gives_a_model_that_does_not_train(model):
    assert isinstance(model, Retriever)
    assert not any(part.training for part in model.encoder.modules())
