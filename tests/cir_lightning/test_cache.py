"""Every picture goes through the tower once, whatever happens in between."""

import subprocess
import sys

import pytest
import torch
from fakes.tiny import COLOURS, SHAPES, TinyTower, draw
from PIL import Image
from safetensors.torch import save_file

from cir_lightning import cache
from cir_lightning.cache import FeatureCache
from data_modules.errors import UserError
from data_modules.images import TRANSFORM_VERSION, load_image, to_tensor
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
    first = FeatureCache(tower, folder=folder).features(pictures(paths))
    assert first.dtype == torch.float16
    assert torch.equal(first, direct(paths))
    assert tower.seen == len(paths)
    assert torch.equal(FeatureCache(tower, folder=folder).features(pictures(paths)), first)
    assert tower.seen == len(paths)


def test_rows_come_in_the_order_asked_also_repeated_and_from_several_shards(paths, folder, monkeypatch):
    monkeypatch.setattr(cache, "SHARD", 3)
    tower = TinyTower()
    features = FeatureCache(tower, folder=folder)
    features.features(pictures(paths[:4]))
    asked = [paths[i] for i in (7, 0, 3, 3, 6, 1)]
    assert torch.equal(features.features(pictures(asked)), direct(asked))
    assert tower.seen == 6  # 0-3, 6, 7
    assert torch.equal(features.features(pictures(paths[::-1])), direct(paths[::-1]))
    assert tower.seen == len(paths)
    assert len(list((folder / f"tiny-{TRANSFORM}").glob("*.safetensors"))) == 4


def test_a_changed_picture_is_encoded_again(paths, folder):
    tower = TinyTower()
    before = FeatureCache(tower, folder=folder).features(pictures(paths))
    draw(paths[2], "cyan", "square")
    after = FeatureCache(tower, folder=folder).features(pictures(paths))
    assert tower.seen == len(paths) + 1
    assert torch.equal(after, direct(paths))
    assert [i for i in range(len(paths)) if not torch.equal(before[i], after[i])] == [2]


def test_pictures_with_equal_bytes_are_one(paths, folder):
    paths[1].write_bytes(paths[0].read_bytes())
    tower = TinyTower()
    FeatureCache(tower, folder=folder).features(pictures(paths[:2]))
    assert tower.seen == 1


def test_another_key_is_another_folder(paths, folder):
    tower, other = TinyTower(), TinyTower()
    other.key = "tiny-2"
    other.weight.data.neg_()
    first, second = (FeatureCache(t, folder=folder).features(pictures(paths)) for t in (tower, other))
    assert torch.equal(first, -second)
    assert sorted(p.name for p in folder.iterdir()) == [f"tiny-2-{TRANSFORM}", f"tiny-{TRANSFORM}"]


@pytest.mark.parametrize("damage", ["empty", "truncated", "garbage", "no hashes", "no metadata", "hashes are no JSON"])
def test_a_damaged_shard_is_replaced(paths, folder, capsys, damage):
    FeatureCache(TinyTower(), folder=folder).features(pictures(paths))
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
    assert torch.equal(FeatureCache(tower, folder=folder).features(pictures(paths)), direct(paths))
    assert f"damaged feature cache {shard}" in capsys.readouterr().out
    assert tower.seen == len(paths)
    FeatureCache(tower, folder=folder).features(pictures(paths))
    assert tower.seen == len(paths)
    assert capsys.readouterr().out == ""


CHILD = """
import sys, time
from pathlib import Path
import torch
from cir_lightning.backbones.base import VisionTower
from cir_lightning.cache import FeatureCache
from data_modules.records import Picture
class Slow(VisionTower):
    image_size, patches, width, key, seen = 32, 1, 3, "slow", 0
    def forward(self, pixels):
        time.sleep(0.5)
        self.seen += len(pixels)
        return pixels.float().mean((2, 3))[:, None].half()
tower = Slow()
tower.weight = torch.nn.Parameter(torch.ones(1))
print("ready", flush=True)
sys.stdin.readline()
FeatureCache(tower, folder=Path(sys.argv[1])).features([Picture(p, Path(p), p) for p in sys.argv[2:]])
print(tower.seen)
"""


def test_two_processes_at_once_encode_once(paths, folder):
    command = [sys.executable, "-c", CHILD, str(folder), *map(str, paths)]
    children = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [child.stdout.readline() for child in children] == ["ready\n"] * 2
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    out = [child.communicate(timeout=60)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert sorted(map(int, out)) == [0, len(paths)]
    assert len(list((folder / f"slow-{TRANSFORM}").iterdir())) == 2  # a shard and the lock


def test_a_folder_that_cannot_be_made(paths, folder):
    folder.write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write .*cache.*CIR_CACHE="):
        FeatureCache(TinyTower(), folder=folder).features(pictures(paths))


def test_a_damaged_picture_leaves_no_entry(paths, folder):
    paths[3].write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"yellow\.png"):
        FeatureCache(TinyTower(), folder=folder).features(pictures(paths))
    paths[5].unlink()
    with pytest.raises(UserError, match=r"pink\.png"):
        FeatureCache(TinyTower(), folder=folder).features(pictures(paths))
    assert not list(folder.glob("*/*.safetensors"))


def test_cir_cache_says_where(paths, tmp_path, monkeypatch):
    monkeypatch.setenv("CIR_CACHE", str(tmp_path / "there"))
    FeatureCache(TinyTower()).features(pictures(paths))
    assert list((tmp_path / "there" / "features" / f"tiny-{TRANSFORM}").glob("*.safetensors"))


def test_a_box_is_a_picture_of_its_own(paths, folder):
    """Two parts of one file, cut off at its edges and made square by black ones."""
    tower = TinyTower()
    parts = [Picture(str(box), paths[0], str(box), box=box) for box in ((0, 0, 24, 24), (24, 30, 60, 60))]
    whole, *found = FeatureCache(tower, folder=folder).features([*pictures(paths[:1]), *parts])
    image = Image.open(paths[0]).convert("RGB")
    beyond = Image.new("RGB", (24, 24), "black")
    beyond.paste(image.crop((24, 30, 48, 48)), (0, 3))
    expected = tower(torch.stack([to_tensor(part, 32) for part in (image.crop((0, 0, 24, 24)), beyond)]))
    assert torch.equal(torch.stack(found), expected)
    assert not torch.equal(whole, found[0])


def test_another_transform_has_other_features(paths, folder):
    tall = paths[0]
    Image.new("RGB", (20, 60), "red").save(tall)
    squashed, boxed = (FeatureCache(TinyTower(), how, folder).features(pictures([tall])) for how in ("squash", "letterbox"))
    assert not torch.equal(squashed, boxed)
    assert sorted(p.name for p in folder.iterdir()) == [f"tiny-letterbox-{TRANSFORM_VERSION}", f"tiny-squash-{TRANSFORM_VERSION}"]
