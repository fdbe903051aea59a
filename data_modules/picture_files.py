"""Opening picture files safely. Needs neither torch nor numpy."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from PIL import Image

from data_modules.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import BytesIO
    from pathlib import Path

MAX_PIXELS = 100_000_000  # 300 MB as RGB; small files can claim far more ("decompression bombs")


@contextmanager
def open_picture(file: Path | BytesIO, formats: tuple[str, ...] | None = None) -> Iterator[Image.Image]:
    """Open a picture as Pillow has it; what is wrong with it may come out only when its pixels are read, inside the ``with``.

    Args:
        file: a picture of any format that Pillow reads.
        formats: Pillow's names of the only formats to try; None for all but EPS, for which Pillow starts Ghostscript.

    Raises:
        UserError: the file is missing, is not a picture, is damaged, has more than ``MAX_PIXELS`` pixels, or has 32 bits per pixel
            without colours, of which nobody knows what is black and what is white.
    """
    if formats is None:
        Image.init()
        formats = tuple(name for name in Image.ID if name != "EPS")
    try:
        with Image.open(file, formats=formats) as image:
            _check(image, file)
            if image.format == "PNG":
                _check_sums(file)
            yield image
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"no picture file {file}; put it there, or check the folder that the data set's pictures are in") from error
    except Image.DecompressionBombError as error:
        raise UserError(_too_large(file, "an extreme number of pixels")) from error
    except Exception as error:  # damaged bytes make Pillow's readers raise nearly anything
        raise UserError(f"cannot read picture {file} ({error}); replace the file, or download it again if it is cut off") from error


def _check(image: Image.Image, file: Path | BytesIO) -> None:
    """Refuse by what the file's header says, before its pixels are read."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UserError(_too_large(file, f"{width} x {height} pixels"))
    if image.mode in ("I", "F"):
        raise UserError(f"cannot read picture {file} (32 bits per pixel, mode {image.mode}); save it with 8 bits per colour")


def _check_sums(file: Path | BytesIO) -> None:
    """Refuse a PNG file that has a part with another checksum than it was written with: where pixels are read, Pillow does not look."""
    with Image.open(file, formats=("PNG",)) as image:
        image.verify()


def _too_large(file: Path | BytesIO, size: str) -> str:
    return f"picture {file} has {size}, the limit is {MAX_PIXELS // 1_000_000} million; scale it down first"
