"""Checkpoints hold what is trained, and are refused when they do not fit; nothing in them is run."""

import pickle
from pathlib import Path

import pytest
import torch
from fakes.build import tiny_module

from cir_lightning.checkpoint import find_checkpoint, parse_config, read_checkpoint, trained_state
from cir_lightning.weights import find_weights, read_weights
from data_modules.errors import UserError


@pytest.fixture
def module():
    module = tiny_module()
    module.configure_model()
    return module


def test_saved_keys_are_the_trained_ones_and_the_buffers(module):
    saved = trained_state(module, module.state_dict())
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    assert set(saved) == trained | {"encoder.standardise.mean", "encoder.standardise.scale"}
    assert any("lora_A" in name for name in saved)
    assert not any("embed_tokens" in name or "tower" in name for name in saved)
    assert sum(t.numel() * t.element_size() for t in saved.values()) < 1e6


def test_a_saved_state_is_loaded(module):
    saved = {name: torch.full_like(tensor, 3) for name, tensor in trained_state(module, module.state_dict()).items()}
    module.load_state_dict(saved)
    assert all((module.state_dict()[name] == 3).all() for name in saved)
    frozen = module.state_dict().keys() - saved.keys()
    assert not any((module.state_dict()[name] == 3).all() for name in frozen)


@pytest.mark.parametrize("key", ["encoder.projection.weight", "encoder.standardise.mean"])
def test_a_renamed_key_is_refused_by_both_names(module, key):
    saved = trained_state(module, module.state_dict())
    saved["encoder.other"] = saved.pop(key)
    with pytest.raises(UserError, match=rf"another model \(missing: {key}; unknown: encoder\.other\)"):
        module.load_state_dict(saved)
    module.load_state_dict(saved, strict=False)


def test_a_tensor_of_another_shape_is_refused_and_nothing_is_loaded(module):
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    saved = {name: tensor + 1 for name, tensor in trained_state(module, before).items()}
    saved["encoder.projection.bias"] = torch.ones(5)
    with pytest.raises(UserError, match=r"another model \(of another shape: encoder\.projection\.bias\)"):
        module.load_state_dict(saved)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_a_checkpoint_on_another_tower_is_refused(module):
    with pytest.raises(UserError, match="vision tower 'other', not on 'tiny'"):
        module.on_load_checkpoint({"tower": "other"})


WHOLE = {
    "config": "{model: {lr: 1}, data: {}}",
    "state_dict": {"x": torch.ones(1000)},
    "tower": "t",
    "pytorch-lightning_version": "2.6.6",
}


def test_a_whole_checkpoint_is_read(tmp_path):
    torch.save(WHOLE, tmp_path / "a.ckpt")
    assert read_checkpoint(tmp_path / "a.ckpt")["config"] == WHOLE["config"]
    assert read_weights(tmp_path / "a.ckpt")[1:] == ("t", {"model": {"lr": 1}, "data": {}})


def test_a_missing_file_names_its_neighbours(tmp_path):
    with pytest.raises(UserError, match=r"b\.ckpt: no such file; train one with cir fit"):
        read_checkpoint(tmp_path / "b.ckpt")
    torch.save({}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=r"b\.ckpt: no such file; there are .*a\.ckpt"):
        read_checkpoint(tmp_path / "b.ckpt")
    with pytest.raises(UserError, match="no such file"):
        read_checkpoint(tmp_path / "no folder" / "b.ckpt")


@pytest.mark.parametrize("content", [{"state_dict": {}}, [1, 2], torch.ones(2)])
def test_a_file_without_config_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="holds no config"):
        read_checkpoint(tmp_path / "a.ckpt")


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x80\x02garbage", b"PK\x03\x04" + bytes(100), bytes(5000)])
def test_garbage_is_refused(tmp_path, content):
    (tmp_path / "a.ckpt").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.ckpt: not a readable checkpoint"):
        read_checkpoint(tmp_path / "a.ckpt")


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused(tmp_path, kept):
    path = tmp_path / "a.ckpt"
    torch.save(WHOLE, path)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(UserError, match=r"a\.ckpt: not a readable checkpoint, the file is cut off, damaged or of another kind"):
        read_checkpoint(path)


@pytest.mark.parametrize(("key", "value"), [("state_dict", [1]), ("state_dict", {"x": "one"}), ("tower", 3), ("config", b"a: 1")])
def test_a_part_of_another_kind_is_refused(tmp_path, key, value):
    torch.save(WHOLE | {key: value}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=rf"a\.ckpt: this file holds no {key}, so cir fit did not write it"):
        read_checkpoint(tmp_path / "a.ckpt")


@pytest.mark.parametrize("text", ["{model: [", "just words", "model: 1", "{model: {}, data: 3}", "\x00"])
def test_a_damaged_config_is_refused(tmp_path, text):
    with pytest.raises(UserError, match=r"a\.ckpt: the config in this file is damaged; use another one"):
        parse_config(text, Path("a.ckpt"))
    torch.save(WHOLE | {"config": text}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="the config in this file is damaged"):
        read_weights(tmp_path / "a.ckpt")


def test_a_run_folder_means_its_best_checkpoint_or_its_last(tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    assert find_checkpoint(tmp_path / "run") == folder / "best.ckpt"
    (folder / "last.ckpt").touch()
    for name in (tmp_path / "run", folder):
        assert find_checkpoint(name) == find_weights(str(name)) == folder / "last.ckpt"
    (folder / "best.ckpt").touch()
    assert find_checkpoint(tmp_path / "run") == find_weights(str(tmp_path / "run")) == folder / "best.ckpt"
    assert find_checkpoint(tmp_path / "run", "last.ckpt") == folder / "last.ckpt"
    assert find_checkpoint(tmp_path / "other.ckpt") == tmp_path / "other.ckpt"


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_is_not_run(tmp_path, zipped):
    path, trace = tmp_path / "a.ckpt", tmp_path / "was here"
    if zipped:
        torch.save({"config": Trap(trace)}, path)
    else:
        path.write_bytes(pickle.dumps({"config": Trap(trace)}))
    with pytest.raises(UserError, match="not a readable checkpoint"):
        read_checkpoint(path)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Trap(trace)))  # the trap does work
    assert trace.exists()
