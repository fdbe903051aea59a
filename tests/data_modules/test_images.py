from __future__ import annotations

import hashlib
import os
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image, PngImagePlugin

from data_modules import picture_files
from data_modules.errors import UserError
from data_modules.images import content_hash, cut, load_image, to_tensor

if TYPE_CHECKING:
    from pathlib import Path

    from data_modules.images import Transform


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


@pytest.mark.parametrize("mode", ["RGB", "P"])
def test_a_png_with_another_checksum_is_refused(tmp_path: Path, mode: str):
    """Every flipped bit that matters, also among the pixels, where Pillow alone would show other colours."""
    path = tmp_path / "a.png"
    Image.effect_noise((24, 24), 90).convert(mode).save(path)
    content = path.read_bytes()
    for at in range(0, content.index(b"IEND") - 4, 7):
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        with pytest.raises(UserError, match=r"cannot read picture .*a\.png"):
            load_image(path)
    with pytest.raises(UserError, match="cannot read picture"), picture_files.open_picture(BytesIO(path.read_bytes())) as image:
        image.load()
    with picture_files.open_picture(BytesIO(content)) as image:
        assert image.convert("RGB").size == (24, 24)


@pytest.mark.parametrize("error", [RuntimeError, TypeError, IndexError, KeyError, ZeroDivisionError])
def test_whatever_a_reader_raises_names_the_file(red: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]):
    """AVIF's raises RuntimeError, TIFF's TypeError, both for some damaged bytes only."""

    def fail(*_: object) -> None:
        raise error("odd")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
    with pytest.raises(UserError, match=r"cannot read picture .*red\.png .*odd.*; replace the file"):
        load_image(red)


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


# ---- geometry --------------------------------------------------------------------------------------------------------------------


def ramp(width: int, height: int) -> Image.Image:
    """Red is the column and green the row, so that every pixel says where it comes from."""
    pixels = np.full((height, width, 3), 99, dtype=np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(width), np.arange(height)[:, None]
    return Image.fromarray(pixels)


def come_from(side: int, scaled: int, offset: int, size: int) -> np.ndarray:
    """Source coordinate of each of ``size`` pixels after ``side`` was scaled to ``scaled`` and ``offset`` pixels were cut off."""
    return (np.arange(size) + offset + 0.5) * side / scaled - 0.5


def agrees(tensor: torch.Tensor, columns: np.ndarray, rows: np.ndarray, edge: int = 2) -> bool:
    """Whether pixels come from where they should; next to the edges, where bicubic weights are cut off, anything goes."""
    inner = slice(edge, len(columns) - edge)
    red, green, _ = tensor.numpy().astype(float)
    return bool((abs(red - columns)[:, inner] <= 1).all() and (abs(green - rows[:, None])[inner] <= 1).all())


PLAIN = [  # width, height, size -> scaled width and height, columns and rows that are cut off first
    ((100, 50, 20), (40, 20), (10, 0)),
    ((50, 100, 20), (20, 40), (0, 10)),
    ((60, 60, 20), (20, 20), (0, 0)),
    ((75, 50, 21), (31, 21), (5, 0)),  # 31.5 is cut, not rounded
    ((73, 50, 20), (29, 20), (4, 0)),  # 4.5 is rounded to even
    ((50, 78, 20), (20, 31), (0, 6)),  # 5.5 as well
    ((30, 20, 60), (90, 60), (15, 0)),  # scaled up
]


@pytest.mark.parametrize(("given", "scaled", "offset"), PLAIN)
def test_plain_scales_the_shorter_side_and_cuts_the_middle_out(given, scaled, offset):
    width, height, size = given
    tensor = to_tensor(ramp(width, height), size, "plain")
    assert tensor.shape == (3, size, size)
    edge = 2 if size < min(width, height) else 5
    assert agrees(tensor, come_from(width, scaled[0], offset[0], size), come_from(height, scaled[1], offset[1], size), edge)


@pytest.mark.parametrize("given", [(100, 50), (30, 70), (40, 40)])
def test_squash_keeps_all_of_the_picture(given: tuple[int, int]):
    tensor = to_tensor(ramp(*given), 20, "squash")
    assert agrees(tensor, *(come_from(side, 20, 0, 20) for side in given))


PADDED = [  # width, height -> black columns and rows on each side
    ((100, 100), (0, 0)),
    ((124, 100), (0, 0)),
    ((125, 100), (0, 0)),  # 125 / 1.25 = 100
    ((127, 100), (0, 0)),  # 0.8 pixels on each side are cut to none
    ((130, 100), (0, 2)),  # 104
    ((133, 100), (0, 3)),  # 106.4: 3.2
    ((200, 100), (0, 30)),  # 160
    ((80, 160), (24, 0)),  # 128
    ((250, 50), (0, 75)),  # 200
]


@pytest.mark.parametrize(("given", "edges"), PADDED)
def test_pad_adds_black_edges_to_a_ratio_of_five_quarters(given: tuple[int, int], edges: tuple[int, int]):
    padded = np.pad(np.asarray(ramp(*given)), ((edges[1], edges[1]), (edges[0], edges[0]), (0, 0)))
    expected = to_tensor(Image.fromarray(padded), 40, "plain")
    assert torch.equal(to_tensor(ramp(*given), 40, "pad"), expected)


def test_pad_of_a_wide_white_picture_by_hand():
    """200 x 100 becomes 200 x 160, then 50 x 40: black are the first and the last 7.5 rows, which bicubic weights blur over 2 rows."""
    tensor = to_tensor(Image.new("RGB", (200, 100), "white"), 40, "pad")
    rows = tensor.float().mean((0, 2))
    assert (rows[:6] == 0).all()
    assert (rows[34:] == 0).all()
    assert (rows[10:30] == 255).all()
    assert torch.equal(tensor, tensor[:, :, :1].expand(-1, -1, 40))  # no edges on the left and right


@pytest.mark.parametrize(
    ("box", "black"),
    [
        ((10, 5, 30, 25), ((0, 0), (0, 0))),  # a square
        ((10, 5, 40, 25), ((5, 5), (0, 0))),  # 30 x 20
        ((10, 5, 21, 25), ((0, 0), (4, 5))),  # 11 x 20
        ((-7, -9, 20, 10), ((5, 5), (0, 0))),  # as far as the picture goes: 20 x 10
        ((50, 30, 99, 99), ((0, 0), (0, 0))),  # 10 x 10
    ],
)
def test_cut_is_the_part_in_the_box_made_square_by_black_edges(box: tuple[int, int, int, int], black):
    left, top, right, bottom = box
    part = np.asarray(ramp(60, 40))[max(0, top) : bottom, max(0, left) : right]
    assert np.array_equal(np.asarray(cut(ramp(60, 40), box)), np.pad(part, (*black, (0, 0))))


def test_cut_without_a_box_is_the_picture():
    image = ramp(60, 40)
    assert cut(image, None) is image


@pytest.mark.parametrize("box", [(60, 0, 70, 10), (0, 40, 10, 50), (-9, 0, 0, 10), (20, 5, 10, 25), (10, 5, 10, 25)])
def test_a_box_outside_the_picture_is_refused(box: tuple[int, int, int, int]):
    with pytest.raises(UserError, match=r"box \(.*\) is not in its picture of 60 x 40 pixels; use the picture that the box is of"):
        cut(ramp(60, 40), box)


@pytest.mark.parametrize("transform", ["letterbox", "pad", "plain", "squash"])
@pytest.mark.parametrize("size", [(1, 500), (500, 1), (1, 1), (33, 32)])
def test_every_transform_makes_a_square_of_anything(size: tuple[int, int], transform: Transform):
    tensor = to_tensor(Image.new("RGB", size, "red"), 8, transform)
    assert tensor.shape == (3, 8, 8)
    assert tensor.dtype == torch.uint8


@pytest.mark.parametrize("transform", ["letterbox", "pad", "plain", "squash"])
@pytest.mark.parametrize("size", [(3_000_000, 3), (3, 3_000_000)])
def test_a_strip_takes_no_more_memory_than_a_picture_may(size: tuple[int, int], transform: Transform):
    """Scaled or padded as a whole it would need terabytes."""
    strip = Image.new("RGB", size, "white")
    assert to_tensor(strip, 8, transform).shape == (3, 8, 8)
    assert to_tensor(cut(strip, (0, 0, 2_000_000, 2_000_000)), 8, transform).shape == (3, 8, 8)


@pytest.mark.parametrize("given", [(401, 100), (100, 1001), (999, 10)])
def test_plain_of_a_strip_is_its_middle(given: tuple[int, int]):
    left, top = ((side - min(given)) / 2 for side in given)
    expected = ramp(*given).resize((20, 20), Image.Resampling.BICUBIC, box=(left, top, left + min(given), top + min(given)))
    assert (to_tensor(ramp(*given), 20, "plain").permute(1, 2, 0).int() - torch.tensor(np.asarray(expected)).int()).abs().max() <= 4


def test_content_hash_is_sha256_of_the_bytes(red: Path, tmp_path: Path):
    assert content_hash(red) == hashlib.sha256(red.read_bytes()).hexdigest()
    with pytest.raises(UserError, match=r"cannot read picture file .*nowhere"):
        content_hash(tmp_path / "nowhere")


def test_a_picture_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Pillow gives EPS files, whatever their suffix, to Ghostscript."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path / 'started'}\nexit 1\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # not looked for yet
    (tmp_path / "a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(words) print\n%%EOF\n")
    with pytest.raises(UserError, match=r"cannot read picture .*a\.jpg"):
        load_image(tmp_path / "a.jpg")
    assert not (tmp_path / "started").exists()
