from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from data_modules import picture_files
from data_modules.errors import UserError
from data_modules.images import content_hash, load_image, to_tensor

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def red(tmp_path: Path) -> Path:
    path = tmp_path / "red.png"
    Image.new("RGB", (30, 20), "red").save(path)
    return path


def test_reads_a_picture_as_rgb(red: Path):
    image = load_image(red)
    assert image.mode == "RGB"
    assert image.size == (30, 20)
    assert image.getpixel((3, 3)) == (255, 0, 0)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_becomes_white(tmp_path: Path, mode: str):
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    image.putpixel((0, 0), (0, 0, 0, 255))
    image.convert(mode).save(tmp_path / "a.png")
    read = load_image(tmp_path / "a.png")
    assert read.getpixel((2, 2)) == (255, 255, 255)
    assert read.getpixel((0, 0)) == (0, 0, 0)


def test_half_transparent_black_is_grey(tmp_path: Path):
    Image.new("RGBA", (4, 4), (0, 0, 0, 128)).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png").getpixel((0, 0)) == (127, 127, 127)


def test_exif_orientation_is_applied(tmp_path: Path):
    image = Image.new("RGB", (30, 20), "red")
    exif = image.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    image.save(tmp_path / "a.jpg", exif=exif)
    assert load_image(tmp_path / "a.jpg").size == (20, 30)


@pytest.mark.parametrize("mode", ["L", "1", "CMYK"])
def test_other_modes_become_rgb(tmp_path: Path, mode: str):
    Image.new(mode, (5, 5)).save(tmp_path / "a.tiff")
    assert load_image(tmp_path / "a.tiff").mode == "RGB"


@pytest.mark.parametrize(("suffix", "dtype"), [("png", "<u2"), ("tiff", "<u2"), ("tiff", ">u2")])
def test_sixteen_bits_keep_their_grey(tmp_path: Path, suffix: str, dtype: str):
    Image.fromarray(np.array([[0, 0x8000, 0xFFFF]], dtype=dtype)).save(tmp_path / f"a.{suffix}")
    assert np.asarray(load_image(tmp_path / f"a.{suffix}"))[0].tolist() == [[0] * 3, [128] * 3, [255] * 3]


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pictures_without_a_range_of_grey_are_refused(tmp_path: Path, dtype: type):
    Image.fromarray(np.ones((3, 3), dtype=dtype)).save(tmp_path / "a.tiff")
    with pytest.raises(UserError, match=r"cannot read picture .*a\.tiff \(32 bits per pixel.*save it with 8 bits"):
        load_image(tmp_path / "a.tiff")


def test_missing_file_names_path_and_remedy(tmp_path: Path):
    with pytest.raises(UserError, match=r"no picture file .*nowhere\.png; put it there"):
        load_image(tmp_path / "nowhere.png")


def test_folder_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="cannot read picture"):
        load_image(tmp_path)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_truncated_file_is_refused(tmp_path: Path, suffix: str):
    path = tmp_path / f"a.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(UserError, match=rf"cannot read picture .*a\.{suffix} .*replace the file, or download it again"):
        load_image(path)


@pytest.mark.parametrize("content", [b"", b"<html>404 Not Found</html>", b"\x89PNG\r\n\x1a\n\x00\x00", b"P6\n2W 5\n255\n"])
def test_file_that_is_no_picture_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UserError, match="cannot read picture"):
        load_image(tmp_path / "a.png")


def test_huge_comment_in_a_picture_is_refused(tmp_path: Path):
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * 3_000_000, zip=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", pnginfo=info)
    with pytest.raises(UserError, match="cannot read picture"):
        load_image(tmp_path / "a.png")


def test_more_pixels_than_the_limit_are_refused(red: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(picture_files, "MAX_PIXELS", 599)
    with pytest.raises(UserError, match=r"red\.png has 30 x 20 pixels.*scale it down"):
        load_image(red)


def test_decompression_bomb_is_refused(red: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow refuses twice this number by itself
    with pytest.raises(UserError, match=r"red\.png has an extreme number of pixels"):
        load_image(red)


def test_tensor_has_the_asked_size_and_white_beside_the_picture(red: Path):
    tensor = to_tensor(load_image(red), 12)
    assert tensor.shape == (3, 12, 12)
    assert tensor.dtype == torch.uint8
    assert tensor[:, 6, 6].tolist() == [255, 0, 0]
    assert tensor[:, 0, 6].tolist() == [255, 255, 255]
    assert tensor[:, 11, 6].tolist() == [255, 255, 255]
    assert (tensor[0] == 255).all()


def test_square_picture_of_the_size_is_unchanged():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    assert torch.equal(to_tensor(Image.fromarray(pixels), 16), torch.from_numpy(pixels).permute(2, 0, 1))


@pytest.mark.parametrize("size", [(1, 500), (500, 1), (1, 1)])
def test_extreme_proportions(size: tuple[int, int]):
    assert to_tensor(Image.new("RGB", size, "red"), 8).shape == (3, 8, 8)


def test_content_hash_is_sha256_of_the_bytes(red: Path, tmp_path: Path):
    assert content_hash(red) == hashlib.sha256(red.read_bytes()).hexdigest()
    with pytest.raises(UserError, match=r"cannot read picture file .*nowhere"):
        content_hash(tmp_path / "nowhere")
