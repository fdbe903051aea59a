"""Pixels at every step: what augmentation does to pictures, and how they come into batches."""

from random import Random

import numpy as np
import pytest
import torch
from fakes.tiny import TinyCIR
from PIL import Image

from data_modules.collate import distinct
from data_modules.errors import UserError
from data_modules.images import load_image, to_tensor
from data_modules.pixels import PixelReader, augmented, processors
from data_modules.records import Picture

WIDTH, HEIGHT = 200, 120


@pytest.fixture
def places():
    """A picture whose red and green are each pixel's column and row."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return Image.fromarray(np.stack([columns, rows, 0 * rows], -1).astype(np.uint8))


def test_none_changes_nothing(places):
    assert augmented(places, "none", Random(0)) is places


def test_crops_are_random_parts(places):
    shares, ratios, corners = [], [], set()
    for seed in range(300):
        part = np.asarray(augmented(places, "crop", Random(seed)))
        height, width, _ = part.shape
        left, top = part[0, 0, :2].tolist()
        assert (part == np.asarray(places)[top : top + height, left : left + width]).all()  # a part, not scaled, not mirrored
        shares.append(width * height / (WIDTH * HEIGHT))
        if width < WIDTH and height < HEIGHT:  # else there was no room
            ratios.append(width / height)
        corners.add((left, top))
    assert min(shares) > 0.45
    assert 0.65 < np.mean(shares) < 0.8
    assert min(ratios) > 0.74
    assert max(ratios) < 1.35
    assert len(corners) > 100


def test_half_of_them_are_mirrored(places):
    mirrored = 0
    for seed in range(300):
        part = np.asarray(augmented(places, "crop_flip", Random(seed)))
        steps = np.unique(np.diff(part[0, :, 0].astype(int)))
        assert steps.tolist() in ([1], [-1])
        mirrored += steps[0] < 0
    assert 115 < mirrored < 185  # four standard deviations


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (2, 3)])
def test_there_is_always_a_part(size):
    part = augmented(Image.new("RGB", size), "crop_flip", Random(1))
    assert 1 <= part.width <= size[0]
    assert 1 <= part.height <= size[1]


def test_a_reader_gives_squares_and_the_same_ones_for_the_same_seed(places, tmp_path):
    places.save(tmp_path / "a.png")
    pictures = [Picture("a", tmp_path / "a.png", "a"), Picture("b", tmp_path / "a.png", "b", box=(0, 0, 60, 60))]
    positions = torch.tensor([1, 0, 0])
    plain = PixelReader(pictures, 32, "squash")(positions)
    for found, picture in zip(plain, (pictures[1], pictures[0], pictures[0]), strict=True):
        assert torch.equal(found, to_tensor(load_image(picture.path, picture.box), 32, "squash"))
    crop = PixelReader(pictures, 32, "squash", "crop")
    assert torch.equal(crop(positions, 0.25), crop(positions, 0.25))
    assert torch.equal(crop(positions, 0.25)[1], crop(positions, 0.25)[2])  # one look at a picture in a batch
    assert not torch.equal(crop(positions, 0.25), crop(positions, 0.75))


def loaders(tmp_path, workers, augment="none", *, evaluation=True):
    data = TinyCIR(str(tmp_path))
    data.num_workers, data.augment = workers, augment
    data.setup()
    data.bring_pixels(16, evaluation=evaluation)
    return data, [data.train_dataloader(), *data.val_dataloader()]


def test_batches_hold_the_pixels_of_their_pictures(tmp_path):
    data, (train, gallery, queries) = loaders(tmp_path, 0)
    read = PixelReader(data.pictures, 16, "letterbox")
    for batch in train:
        assert torch.equal(batch.pixels, read(distinct(batch.reference, batch.target)[0]))
    for batch in gallery:
        assert torch.equal(batch.pixels, read(batch.picture))
    for batch in queries:
        assert torch.equal(batch.pixels, read(batch.reference))


def test_augmented_batches_are_the_same_with_workers(tmp_path):
    data, (alone, gallery, _) = loaders(tmp_path, 0, "crop_flip")
    _, (workers, same_gallery, _) = loaders(tmp_path, None, "crop_flip")
    assert (alone.num_workers, workers.num_workers) == (0, max(1, min(8, processors() - 1)))
    for one, other in zip(alone, workers, strict=True):
        assert torch.equal(one.pixels, other.pixels)
    for one, other in zip(gallery, same_gallery, strict=True):
        assert torch.equal(one.pixels, other.pixels)
    read = PixelReader(data.pictures, 16, "letterbox")
    assert torch.equal(one.pixels, read(one.picture))  # what is ranked is never augmented


def test_only_training_looks_at_pixels(tmp_path):
    _, (train, gallery, queries) = loaders(tmp_path, None, evaluation=False)
    assert train.num_workers
    assert gallery.num_workers == queries.num_workers == 0
    assert next(iter(gallery)).pixels is None


def test_without_pixels_there_are_no_workers(tmp_path):
    data = TinyCIR(str(tmp_path))
    data.num_workers = None
    data.setup()
    assert data.train_dataloader().num_workers == 0
    assert next(iter(data.train_dataloader())).pixels is None


def test_a_picture_that_cannot_be_read(tmp_path):
    (tmp_path / "a.png").write_bytes(b"none")
    with pytest.raises(UserError, match=r"cannot read picture .*a\.png"):
        PixelReader([Picture("a", tmp_path / "a.png", "a")], 16, "plain")(torch.tensor([0]))


def test_a_damaged_picture_in_a_workers_hands_is_one_sentence(tmp_path):
    data = TinyCIR(str(tmp_path))
    data.prepare_data()
    data.setup("fit")
    data.num_workers = 1
    data.bring_pixels(8, evaluation=False)
    for picture in data.pictures:
        picture.path.write_bytes(b"not a picture")
    with pytest.raises(UserError, match=r"^cannot read picture \S+\.png \([^\n]*\); replace the file, or [^\n]*$"):
        next(iter(data.train_dataloader()))
