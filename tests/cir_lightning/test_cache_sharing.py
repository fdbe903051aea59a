"""Several real processes fill one feature cache; some are killed, and some have no disk to write on."""

import json
import signal
import subprocess
import sys

import pytest
import torch
from fakes.tiny import COLOURS, SHAPES, draw
from safetensors import safe_open

from cir_lightning.cache_claims import claim, live_claims
from cir_lightning.cli import main
from data_modules.images import TRANSFORM_VERSION, content_hash, load_image, to_tensor

CHILD = """
import resource, sys, time
from pathlib import Path
import torch
from cir_lightning import cache
from cir_lightning.backbones.base import VisionTower
from data_modules.errors import UserError
from data_modules.records import Picture
class Slow(VisionTower):
    image_size, patches, width, key = 32, 1, 3, "slow"
    def forward(self, pixels):
        print("encodes", len(pixels), flush=True)
        time.sleep(0.3)
        return self.rounded(pixels.float().mean((2, 3))[:, None])
tower = Slow()
tower.weight = torch.nn.Parameter(torch.ones(1))
cache.SHARD = int(sys.argv[2])
limit = int(sys.argv[3])
pictures = [Picture(p, Path(p), p) for p in sys.argv[4:]]
print("ready", flush=True)
sys.stdin.readline()
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    features = cache.FeatureCache(tower, folder=Path(sys.argv[1])).open(pictures)
    print("features", features[:].flatten().tolist())
except UserError as error:
    print("refused", error)
"""


@pytest.fixture
def paths(tmp_path):
    paths = [tmp_path / f"{colour}.png" for colour in COLOURS]
    for path, shape in zip(paths, SHAPES * 2, strict=False):
        draw(path, path.stem, shape)
    return paths


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache" / f"slow-letterbox-{TRANSFORM_VERSION}"


class Process:
    """One that fills the cache, once it is told to."""

    def __init__(self, folder, paths, shard=2, limit=0):
        command = [sys.executable, "-c", CHILD, str(folder.parent), str(shard), str(limit), *map(str, paths)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "ready\n"

    def go(self):
        """Let it begin."""
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def end(self):
        """How many pictures it has encoded, and what it said at last."""
        out, error = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, error
        *encoded, last = out.splitlines()
        return sum(int(line.split()[1]) for line in encoded), last


def expected(paths):
    rows = [to_tensor(load_image(path), 32).float().mean((1, 2)).half() for path in paths]
    return f"features {torch.cat(rows).tolist()}"


def left(folder):
    """What lies in the folder besides shards."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".safetensors")


def test_three_processes_share_the_work(folder, paths):
    processes = [Process(folder, paths) for _ in range(3)]
    for process in processes:
        process.go()
    counts, said = zip(*(process.end() for process in processes), strict=True)
    assert sum(counts) == len(paths)
    assert all(counts)
    assert set(said) == {expected(paths)}
    assert left(folder) == ["used"]


def test_one_waits_for_what_another_one_is_making(folder, paths):
    first, second = (Process(folder, paths, shard=99) for _ in range(2))
    first.go()
    assert first.process.stdout.readline().startswith("encodes")
    second.go()
    assert second.end() == (0, expected(paths))
    assert first.end()[1] == expected(paths)
    assert left(folder) == ["used"]


def test_what_a_killed_process_claimed_is_made_by_the_next_one(folder, paths):
    killed = Process(folder, paths, shard=4)
    killed.go()
    for _ in range(2):  # the first shard is there, the second one is on its way
        assert killed.process.stdout.readline() == "encodes 4\n"
    killed.process.send_signal(signal.SIGKILL)
    killed.process.wait()
    killed.process.stdout.close(), killed.process.stdin.close(), killed.process.stderr.close()
    assert left(folder) == ["claim-00001.json", "claim-00001.lock"]
    (folder / ".00001-abc.safetensors.123").write_bytes(b"half")
    after = Process(folder, paths)
    after.go()
    assert after.end() == (len(paths) - 4, expected(paths))
    assert left(folder) == ["used"]


def test_a_folder_may_be_removed_while_others_use_it(folder, paths, tmp_path, monkeypatch):
    """Time and again, by a process that waits for the same lock: what is removed is made again, or its loss is a sentence."""
    features = tmp_path / "features"
    monkeypatch.setenv("CIR_CACHE", str(tmp_path))
    processes = [Process(features / folder.name, paths) for _ in range(3)]
    for process in processes:
        process.go()
    while any(process.process.poll() is None for process in processes):
        assert main(["cache", "prune", "--all"]) == 0
    said = [process.end()[1] for process in processes]
    assert all(last == expected(paths) or "was removed while it was in use, as by cir cache prune" in last for last in said), said


def test_a_full_disk_is_a_sentence_and_leaves_nothing_half_written(folder, paths):
    process = Process(folder, paths, limit=300)  # bytes of a file, which stands for a disk
    process.go()
    _, said = process.end()
    assert said.startswith(f"refused cannot write {folder}: File too large; free or choose another folder with CIR_CACHE=")
    assert not list(folder.glob("*.safetensors*"))
    assert not list(folder.glob(".*"))
    assert left(folder) == []


def test_shards_are_safetensors_files(folder, paths):
    process = Process(folder, paths[:3], shard=3)
    process.go()
    process.end()
    (path,) = folder.glob("*.safetensors")
    with safe_open(path, framework="pt") as file:
        features, about = file.get_tensor("features"), file.metadata()
    assert features.shape == (3, 1, 3)
    assert expected(paths[:3]) == f"features {features.flatten().tolist()}"
    assert json.loads(about["entries"]) == [content_hash(path) for path in paths[:3]]


def test_claims_of_this_process_are_live(tmp_path):
    mine = claim(tmp_path, 7, ["a", "b"])
    assert live_claims(tmp_path) == dict.fromkeys("ab", tmp_path / "claim-00007.json")
    mine.give_back()
    assert live_claims(tmp_path) == {}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"[", b"\xff", b"3", b"[[]]"])
def test_a_damaged_claim_claims_nothing(tmp_path, content):
    mine = claim(tmp_path, 3, ["a"])
    mine.path.write_bytes(content)
    assert live_claims(tmp_path) == {}
    assert mine.path.exists()
    mine.give_back()
