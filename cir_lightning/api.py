"""The Python API: load a trained model, encode, rank.

Shapes: P pictures, E embedding.
"""

from __future__ import annotations

from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jsonargparse import ArgumentError, ArgumentParser
from torch import nn

from cir_lightning.checkpoint import load_trained
from cir_lightning.encoder import Encoder
from cir_lightning.exported import check_base
from cir_lightning.trust import known_classes
from cir_lightning.weights import find_weights, read_weights
from data_modules.errors import UserError
from data_modules.images import load_image, to_tensor
from data_modules.validation import is_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from torch import Tensor

    from cir_lightning.encoder import Sight
    from data_modules.images import Transform

MAX_CAPTION_WORDS = 60  # the default of the data modules
BATCH = 8  # as in the feature cache, for the same numbers at the same speed


class Match(NamedTuple):
    """One picture of a ranked list.

    Attributes:
        path: the picture, as it was given.
        score: cosine similarity with the query.
    """

    path: str
    score: float


class Retriever:
    """A trained model that searches pictures with a picture and a sentence. Made by :func:`load`.

    Args:
        encoder: built and with trained weights.
        transform: how pictures become squares, as in training.
    """

    def __init__(self, encoder: Encoder, transform: Transform = "letterbox") -> None:
        self.encoder, self.transform = encoder.eval(), transform

    @torch.inference_mode()
    def encode_query(self, picture: str | PathLike[str], caption: str) -> Tensor:
        """The unit vector (E,) float32 of "this picture, but ...".

        Raises:
            UserError: the picture cannot be read, or the caption is empty, too long or no text.
        """
        if not isinstance(caption, str) or not caption.strip():
            raise UserError(f"the caption is {caption!r:.60}; say in words how the wanted picture differs")
        if not is_text(caption):
            raise UserError(f"the caption {caption!a:.60} has a NUL or half of a character; write it as text")
        if (count := len(caption.split())) > MAX_CAPTION_WORDS:
            raise UserError(f"the caption {caption[:40]!r}... has {count} words; say it in {MAX_CAPTION_WORDS} at most")
        return self.encoder.encode_query(self._see([picture]), [caption])[0].cpu()

    @torch.inference_mode()
    def encode_pictures(self, pictures: Iterable[str | PathLike[str]]) -> Tensor:
        """The unit vectors (P, E) float32 of gallery pictures.

        Raises:
            UserError: there is no picture, or one cannot be read.
        """
        paths = _listed(pictures)
        chunks = (paths[i : i + BATCH] for i in range(0, len(paths), BATCH))
        return torch.cat([self.encoder.encode_target(self._see(chunk)).cpu() for chunk in chunks])

    def rank(self, picture: str | PathLike[str], caption: str, pictures: Iterable[str | PathLike[str]], top: int = 10) -> list[Match]:
        """The pictures that answer the query best, the best one first; the query's own picture is left out.

        Raises:
            UserError: as the two methods above; there is no other picture than the query's; ``top`` is below 1.
        """
        if top < 1:
            raise UserError(f"top={top} pictures were asked for; set it to 1 or more")
        gallery = [path for path in _listed(pictures) if Path(path).resolve() != Path(picture).resolve()]
        if not gallery:
            raise UserError(f"there is no picture to rank besides the query's own, {str(picture)!r}; give others")
        scores = self.encode_pictures(gallery) @ self.encode_query(picture, caption)
        best = scores.sort(descending=True, stable=True)
        return [Match(str(gallery[i]), score) for score, i in zip(best.values.tolist()[:top], best.indices.tolist(), strict=False)]

    def _see(self, pictures: Sequence[str | PathLike[str]]) -> Sight:
        tower = self.encoder.tower
        pixels = torch.stack([to_tensor(load_image(Path(path)), tower.image_size, self.transform) for path in pictures])
        return self.encoder.look(pixels.to(tower.device))


def _listed(pictures: Iterable[str | PathLike[str]]) -> list[str | PathLike[str]]:
    paths = [] if isinstance(pictures, str | PathLike) else list(pictures)
    if not paths:
        raise UserError(f"pictures={pictures!r} is no list of pictures; give at least one path, in a list")
    return paths


def load(name: str | PathLike[str], device: str = "cpu") -> Retriever:
    """A trained model.

    Args:
        name: a run folder, what ``cir export`` wrote, a checkpoint file, or the name of packaged weights (``emoji``).
        device: where it runs.

    Raises:
        UserError: there are no such weights, they do not fit their own config, or the base model is of another revision.
    """
    state, tower, config = read_weights(find_weights(str(name)))
    with naming(str(name)):
        encoder = make_encoder(config)
        check_base(encoder, config, str(name))
        restore(encoder, state, tower, str(name))
    return Retriever(encoder.to(device), transform_of(config))


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Let what is wrong with weights, or with the config in them, be said with their name.

    Raises:
        UserError: as inside.
    """
    try:
        yield
    except UserError as error:
        if name in str(error):
            raise
        raise UserError(f"{name}: {error}") from error


def transform_of(config: dict[str, Any]) -> Any:
    """How pictures become squares, in a run's config."""
    return (config["data"].get("init_args") or {}).get("transform", "letterbox")


def make_encoder(config: dict[str, Any]) -> Encoder:
    """The encoder of a run's config, not built yet.

    Raises:
        UserError: the config describes none that can be made, or see :func:`cir_lightning.trust.known_classes`.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Encoder, "encoder")
    try:
        with known_classes():
            encoder: Encoder = parser.instantiate(parser.parse_object({"encoder": config["model"].get("encoder")})).encoder
    except UserError:
        raise
    except (ArgumentError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"the config of these weights describes no encoder that this version can make ({reason}); use another one"
        ) from error
    return encoder


def restore(encoder: Encoder, state: Mapping[str, Tensor], tower: str, name: str) -> None:
    """Build an encoder and give it its trained weights.

    Args:
        encoder: not built yet.
        state: trained tensors by name; those of the loss are left out.
        tower: key of the vision tower that they were trained on.
        name: of the weights, for messages.

    Raises:
        UserError: they are of another model or vision tower.
    """
    encoder.restored = True
    encoder.build()
    if tower != encoder.tower.key:
        raise UserError(f"{name}: the weights were trained on the vision tower {tower!r}, but this installation has {encoder.tower.key!r}")
    part = nn.ModuleDict({"encoder": encoder})
    mine = {key: value for key, value in state.items() if key.startswith("encoder.")}
    load_trained(part, mine)
