"""Every picture goes through the tower once, whatever happens in between."""

import json
import os
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fakes.tiny import COLOURS, SHAPES, TinyTower, draw
from PIL import Image
from safetensors.torch import save_file

from cir_lightning import cache, cache_hashes
from cir_lightning.backbones.kept import Pooled, kept
from cir_lightning.cache import FeatureCache
from data_modules.errors import UserError
from data_modules.images import TRANSFORM_VERSION, content_hash, load_image, to_tensor
from data_modules.records import Picture

TRANSFORM = f"letterbox-{TRANSFORM_VERSION}"


@pytest.fixture
def paths(tmp_path):
    paths = [tmp_path / f"{colour}.png" for colour in COLOURS]
    for path, shape in zip(paths, SHAPES * 2, strict=False):
        draw(path, path.stem, shape)
    return paths


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


def pictures(paths):
    return [Picture(path.stem, path, path.stem) for path in paths]


def direct(paths):
    """Features without a cache."""
    return TinyTower()(torch.stack([to_tensor(load_image(path), 32) for path in paths]))


def test_the_second_call_does_not_run_the_tower(paths, folder):
    tower = TinyTower()
    first = FeatureCache(tower, folder=folder).open(pictures(paths))[:]
    assert first.dtype == torch.float16
    assert torch.equal(first, direct(paths))
    assert tower.seen == len(paths)
    assert torch.equal(FeatureCache(tower, folder=folder).open(pictures(paths))[:], first)
    assert tower.seen == len(paths)


def test_rows_come_in_the_order_asked_also_repeated_and_from_several_shards(paths, folder, monkeypatch):
    monkeypatch.setattr(cache, "SHARD", 3)
    tower = TinyTower()
    features = FeatureCache(tower, folder=folder)
    features.open(pictures(paths[:4]))[:]
    asked = [paths[i] for i in (7, 0, 3, 3, 6, 1)]
    assert torch.equal(features.open(pictures(asked))[:], direct(asked))
    assert tower.seen == 6  # 0-3, 6, 7
    assert torch.equal(features.open(pictures(paths[::-1]))[:], direct(paths[::-1]))
    assert tower.seen == len(paths)
    assert len(list((folder / f"tiny-{TRANSFORM}").glob("*.safetensors"))) == 4


def test_a_changed_picture_is_encoded_again(paths, folder):
    tower = TinyTower()
    before = FeatureCache(tower, folder=folder).open(pictures(paths))[:]
    draw(paths[2], "cyan", "square")
    after = FeatureCache(tower, folder=folder).open(pictures(paths))[:]
    assert tower.seen == len(paths) + 1
    assert torch.equal(after, direct(paths))
    assert [i for i in range(len(paths)) if not torch.equal(before[i], after[i])] == [2]


def test_pictures_with_equal_bytes_are_one(paths, folder):
    paths[1].write_bytes(paths[0].read_bytes())
    tower = TinyTower()
    FeatureCache(tower, folder=folder).open(pictures(paths[:2]))[:]
    assert tower.seen == 1


def test_another_key_is_another_folder(paths, folder):
    tower, other = TinyTower(), TinyTower()
    other.key = "tiny-2"
    other.weight.data.neg_()
    first, second = (FeatureCache(t, folder=folder).open(pictures(paths))[:] for t in (tower, other))
    assert torch.equal(first, -second)
    assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == [f"tiny-2-{TRANSFORM}", f"tiny-{TRANSFORM}"]


@pytest.mark.parametrize("damage", ["empty", "truncated", "garbage", "no hashes", "no metadata", "hashes are no JSON"])
def test_a_damaged_shard_is_replaced(paths, folder, capsys, damage):
    FeatureCache(TinyTower(), folder=folder).open(pictures(paths))[:]
    (shard,) = (folder / f"tiny-{TRANSFORM}").glob("*.safetensors")
    content, tensors = shard.read_bytes(), {"features": torch.zeros(1, 4, 24).half()}
    match damage:
        case "empty":
            shard.write_bytes(b"")
        case "truncated":
            shard.write_bytes(content[: len(content) // 2])
        case "garbage":
            shard.write_bytes(b"garbage" * 100)
        case "no hashes":
            save_file(tensors, shard, {"other": ""})
        case "no metadata":
            save_file(tensors, shard)
        case _:
            save_file(tensors, shard, {"hashes": "["})
    tower = TinyTower()
    assert torch.equal(FeatureCache(tower, folder=folder).open(pictures(paths))[:], direct(paths))
    assert f"damaged feature cache {shard}" in capsys.readouterr().out
    assert tower.seen == len(paths)
    FeatureCache(tower, folder=folder).open(pictures(paths))[:]
    assert tower.seen == len(paths)
    assert capsys.readouterr().out == ""


def test_a_folder_that_cannot_be_made(paths, folder):
    folder.write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write .*cache.*CIR_CACHE="):
        FeatureCache(TinyTower(), folder=folder).open(pictures(paths))[:]


def test_a_damaged_picture_leaves_no_entry(paths, folder):
    paths[3].write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"yellow\.png"):
        FeatureCache(TinyTower(), folder=folder).open(pictures(paths))[:]
    paths[5].unlink()
    with pytest.raises(UserError, match=r"pink\.png"):
        FeatureCache(TinyTower(), folder=folder).open(pictures(paths))[:]
    assert not list(folder.glob("*/*.safetensors"))


def test_cir_cache_says_where(paths, tmp_path, monkeypatch):
    monkeypatch.setenv("CIR_CACHE", str(tmp_path / "there"))
    FeatureCache(TinyTower()).open(pictures(paths))[:]
    assert list((tmp_path / "there" / "features" / f"tiny-{TRANSFORM}").glob("*.safetensors"))


def test_a_box_is_a_picture_of_its_own(paths, folder):
    """Two parts of one file, cut off at its edges and made square by black ones."""
    tower = TinyTower()
    parts = [Picture(str(box), paths[0], str(box), box=box) for box in ((0, 0, 24, 24), (24, 30, 60, 60))]
    whole, *found = FeatureCache(tower, folder=folder).open([*pictures(paths[:1]), *parts])[:]
    image = Image.open(paths[0]).convert("RGB")
    beyond = Image.new("RGB", (24, 24), "black")
    beyond.paste(image.crop((24, 30, 48, 48)), (0, 3))
    expected = tower(torch.stack([to_tensor(part, 32) for part in (image.crop((0, 0, 24, 24)), beyond)]))
    assert torch.equal(torch.stack(found), expected)
    assert not torch.equal(whole, found[0])


def test_another_transform_has_other_features(paths, folder):
    tall = paths[0]
    Image.new("RGB", (20, 60), "red").save(tall)
    squashed, boxed = (FeatureCache(TinyTower(), how, folder).open(pictures([tall]))[:] for how in ("squash", "letterbox"))
    assert not torch.equal(squashed, boxed)
    assert {p.name for p in folder.iterdir() if p.is_dir()} == {f"tiny-{how}-{TRANSFORM_VERSION}" for how in ("letterbox", "squash")}


def test_a_picture_that_changes_while_it_is_encoded_leaves_no_entry(paths, folder, monkeypatch):
    """Its features would lie under the hash of what it was."""

    def late(path, box):
        if path == paths[3]:
            draw(path, "cyan", "square")
        return load_image(path, box)

    monkeypatch.setattr(cache, "load_image", late)
    with pytest.raises(UserError, match=r"yellow\.png was changed while its features were made; start again"):
        FeatureCache(TinyTower(), folder=folder).open(pictures(paths))
    assert not shards(folder)
    monkeypatch.undo()
    assert torch.equal(FeatureCache(TinyTower(), folder=folder).open(pictures(paths))[:], direct(paths))


def shards(folder):
    return sorted(folder.glob("*/*.safetensors"))


def test_a_flipped_bit_is_found_where_it_matters(paths, folder, capsys):
    """The other pictures of the shard are not read, so nothing is said of them."""
    FeatureCache(TinyTower(), folder=folder).open(pictures(paths))
    (shard,) = shards(folder)
    content = bytearray(shard.read_bytes())
    content[-1] ^= 4  # in the last picture's features
    shard.write_bytes(content)
    tower = TinyTower()
    features = FeatureCache(tower, folder=folder).open(pictures(paths))
    assert torch.equal(features[:7], direct(paths[:7]))
    assert capsys.readouterr().out == ""
    assert torch.equal(features[torch.tensor([7, 7])], direct([paths[7]] * 2))
    assert capsys.readouterr().out == f"damaged feature cache {shard}: the features of {paths[7]} are encoded again\n"
    assert tower.seen == 1
    assert torch.equal(FeatureCache(tower, folder=folder).open(pictures(paths))[:], direct(paths))  # mended for good
    assert capsys.readouterr().out == ""
    assert tower.seen == 1


def test_an_older_format_is_replaced_and_a_newer_one_refused(paths, folder, capsys):
    FeatureCache(TinyTower(), folder=folder).open(pictures(paths))
    (shard,) = shards(folder)
    save_file({"features": torch.zeros(8, 4, 24).half()}, shard, {"hashes": json.dumps([content_hash(path) for path in paths])})
    assert torch.equal(FeatureCache(TinyTower(), folder=folder).open(pictures(paths))[:], direct(paths))
    assert f"damaged feature cache {shard}: it has the older format 1; removed" in capsys.readouterr().out
    (shard,) = shards(folder)
    save_file({"features": torch.zeros(1, 4, 24).half()}, shard, {"format": "3"})
    with pytest.raises(UserError, match=r"has format 3, and this version writes 2; use the version that wrote it, or another folder"):
        FeatureCache(TinyTower(), folder=folder).open(pictures(paths))
    assert shard.exists()


def test_features_of_another_shape_are_not_taken(paths, folder, capsys):
    FeatureCache(TinyTower(), folder=folder).open(pictures(paths))
    tower = TinyTower()
    tower.dtype = torch.bfloat16  # with the key of float16
    features = FeatureCache(tower, folder=folder).open(pictures(paths))[:]
    assert torch.equal(features, tower(torch.stack([to_tensor(load_image(path), 32) for path in paths])))
    assert "its features are (4, 24, 'F16'), not (4, 24, 'BF16'); removed" in capsys.readouterr().out


def test_a_disk_that_is_too_small_is_refused_beforehand(paths, folder, monkeypatch):
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=8 * 4 * 24 * 2 - 1))
    tower = TinyTower()
    with pytest.raises(UserError, match=r"features of 8 pictures take 0\.00 GB, and .* has 0\.00 GB free; choose another folder"):
        FeatureCache(tower, folder=folder).open(pictures(paths))
    assert tower.seen == 0
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=8 * 4 * 24 * 2))
    FeatureCache(tower, folder=folder).open(pictures(paths))


def test_a_cache_that_is_complete_is_only_read(paths, folder, monkeypatch):
    before = FeatureCache(TinyTower(), folder=folder).open(pictures(paths))[:]
    files = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != "used"}

    def read_only(_path):
        raise AssertionError("locked")

    monkeypatch.setattr(cache, "lock", read_only)
    assert torch.equal(FeatureCache(TinyTower(), folder=folder).open(pictures(paths))[:], before)
    assert {path: path.stat().st_mtime_ns for path in files} == files


def test_pictures_are_not_read_again_to_know_them(paths, folder, monkeypatch):
    monkeypatch.setattr(cache_hashes, "SETTLED", 0)
    time.sleep(0.02)
    FeatureCache(TinyTower(), folder=folder).open(pictures(paths))
    read = []
    monkeypatch.setattr(cache_hashes, "content_hash", lambda path: read.append(path) or content_hash(path))
    FeatureCache(TinyTower(), folder=folder).open(pictures(paths))
    assert read == []
    about = paths[2].stat()
    paths[2].write_bytes(paths[2].read_bytes()[:-1] + b"!")
    os.utime(paths[2], ns=(about.st_atime_ns, about.st_mtime_ns))  # the same size and date
    time.sleep(0.02)
    FeatureCache(TinyTower(), folder=folder).open(pictures(paths))
    assert read == [paths[2]]
    next((folder / "hashes").iterdir()).write_text('{"files": 3}')
    FeatureCache(TinyTower(), folder=folder).open(pictures(paths))
    assert sorted(read[1:]) == sorted(paths)


def test_a_damaged_hash_is_not_believed(paths, folder, monkeypatch):
    """The features would be looked for under a wrong name, in every start again."""
    monkeypatch.setattr(cache_hashes, "SETTLED", 0)
    time.sleep(0.02)
    before = FeatureCache(TinyTower(), folder=folder).open(pictures(paths))[:]
    (memory,) = (folder / "hashes").iterdir()
    text = memory.read_text()
    at = text.index(content_hash(paths[3])) + 9
    memory.write_text(text[:at] + ("0" if text[at] != "0" else "1") + text[at + 1 :])
    tower = TinyTower()
    assert torch.equal(FeatureCache(tower, folder=folder).open(pictures(paths))[:], before)
    assert tower.seen == 0
    assert memory.read_text() == text


def test_a_picture_that_was_just_changed_is_not_remembered(paths, folder, monkeypatch):
    FeatureCache(TinyTower(), folder=folder).open(pictures(paths))
    read = []
    monkeypatch.setattr(cache_hashes, "content_hash", lambda path: read.append(path) or content_hash(path))
    FeatureCache(TinyTower(), folder=folder).open(pictures(paths))
    assert sorted(read) == sorted(paths)


def test_means_of_squares_of_patches_in_bfloat16(paths, folder):
    tower, small = TinyTower(), kept(TinyTower(), 2, "bfloat16")
    assert (small.patches, small.width, small.key) == (1, 24, "tiny-bfloat16-pooled2")
    pixels = torch.stack([to_tensor(load_image(path), 32) for path in paths])
    tower.dtype = torch.bfloat16
    expected = tower(pixels).float().numpy().mean(1, keepdims=True)
    features = FeatureCache(small, folder=folder).open(pictures(paths))[:]
    assert features.dtype == torch.bfloat16
    np.testing.assert_allclose(features.float().numpy(), expected, rtol=2**-8)


def test_neighbours_are_pooled():
    """A 4 x 4 map whose first column is ones: pooled to 2 x 2, the left half is a half."""
    tower = TinyTower()
    tower.patches, tower.forward = 16, lambda _: torch.eye(4)[0].repeat(4)[None, :, None]
    assert Pooled(tower, 2)(torch.zeros(1))[0, :, 0].tolist() == [0.5, 0, 0.5, 0]


def test_what_is_kept_by_default_is_everything():
    tower = TinyTower()
    assert kept(tower, 1, "float16") is tower
    assert tower.key == "tiny"


def test_patches_that_no_squares_fill():
    with pytest.raises(UserError, match=r"patch_pooling=3: the 4 patches of this vision tower are no square map that squares"):
        kept(TinyTower(), 3, "float16")


def test_large_numbers():
    tower = TinyTower()
    huge = torch.tensor([1e6, -1e6, 1.0])
    assert tower.rounded(huge).tolist() == [65504, -65504, 1]  # no infinity, which would make everything NaN
    tower.dtype = torch.bfloat16
    assert tower.rounded(huge).tolist() == [999424, -999424, 1]
