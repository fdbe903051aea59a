"""``cir convert qwen-vl-chat``: what is written, interrupted, found damaged or refused."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import weakref
from fractions import Fraction

import pytest
import torch
from fakes import qwen
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cir_lightning import convert as streaming
from cir_lightning.backbones import qwen_vl, qwen_vl_convert
from cir_lightning.backbones.qwen_vl import QwenVLChat
from cir_lightning.backbones.qwen_vl_convert import convert
from cir_lightning.cli import main
from data_modules.errors import UserError


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(qwen_vl, "HEAD", qwen.HEAD)


@pytest.fixture
def shards(monkeypatch):
    """The LLM in several files."""
    monkeypatch.setattr(qwen_vl_convert, "SHARD", 60_000)


@pytest.fixture
def source(tmp_path):
    return qwen.checkpoint(tmp_path / "source")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_tensor_arrives_unchanged_in_its_own_dtype(tmp_path, shards, dtype):
    target = tmp_path / "target"
    convert(qwen.checkpoint(tmp_path / "source", dtype=dtype), target)
    state = {name: tensor.to(dtype) for name, tensor in qwen.golden()[0].items() if name.startswith("state.")}
    index = json.loads((target / "llm" / "model.safetensors.index.json").read_text())
    files = sorted(p.name for p in (target / "llm").glob("*.safetensors"))
    assert files == sorted(set(index["weight_map"].values()))
    assert len(files) > 1
    llm = {name: tensor for file in files for name, tensor in load_file(target / "llm" / file).items()}
    assert set(llm) == set(index["weight_map"])
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in llm.values())
    joined = torch.cat([llm[f"model.layers.1.self_attn.{role}_proj.bias"] for role in "qkv"])
    assert torch.equal(joined, state["state.transformer.h.1.attn.c_attn.bias"])
    assert torch.equal(llm["model.layers.0.mlp.gate_proj.weight"], state["state.transformer.h.0.mlp.w2.weight"])
    parts = [llm, load_file(target / "vision.safetensors"), load_file(target / "connector.safetensors")]
    assert {tensor.dtype for part in parts for tensor in part.values()} == {dtype}
    assert sum(tensor.numel() for part in parts for tensor in part.values()) == sum(tensor.numel() for tensor in state.values())
    assert json.loads((target / "llm" / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    with safe_open(target / "vision.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def stop_after(count, monkeypatch):
    """Ctrl-C in the middle of the next file."""
    real = streaming.write_tensors
    written = []

    def write(path, *rest):
        if len(written) == count:
            path.write_bytes(b"half")
            raise KeyboardInterrupt
        written.append(path)
        return real(path, *rest)

    monkeypatch.setattr(qwen_vl_convert, "write_tensors", write)
    return written


def test_an_interrupted_conversion_goes_on(tmp_path, source, shards, monkeypatch, capsys):
    target = tmp_path / "target"
    command = ["convert", "qwen-vl-chat", str(source), str(target)]
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        assert main(command) == 130
    assert "stopped; the same command goes on" in capsys.readouterr().err
    first = sorted(target.glob("llm/*.safetensors"))
    assert len(first) == 2
    with pytest.raises(UserError, match="no finished conversion"):
        QwenVLChat(str(target)).build()
    killed = [
        target / "llm" / f".{first[0].name}.12345",
        target / ".progress.json.77",
        target / "llm" / ".model.safetensors.index.json.77",
    ]  # of processes that had no time to clean up
    for rest in killed:
        rest.write_bytes(b"half")
    times = [file.stat().st_mtime_ns for file in first]
    with monkeypatch.context() as patch:
        written = stop_after(9, patch)
        assert main(command) == 0
    assert len(written) == 4  # two more of the LLM, ViT, resampler
    assert [file.stat().st_mtime_ns for file in first] == times
    assert not any(rest.exists() for rest in killed)
    assert not (target / "progress.json").exists()
    other = tmp_path / "other"
    convert(source, other)
    names = [p.relative_to(other) for p in other.rglob("*") if p.is_file()]
    assert sorted(names) == sorted(p.relative_to(target) for p in target.rglob("*") if p.is_file())
    assert all((other / name).read_bytes() == (target / name).read_bytes() for name in names)


def test_a_finished_conversion_is_verified_and_mended(tmp_path, source, monkeypatch, capsys):
    target = tmp_path / "target"
    command = ["convert", "qwen-vl-chat", str(source), str(target)]
    assert main(command) == 0
    assert capsys.readouterr().out == f"{target}: 61 tensors became 69 in 3 files, 0.00 GB, verified\n"
    assert main(command) == 0
    assert "was complete already: all 7 files are as they were written" in capsys.readouterr().out
    tokenizer = target / "llm" / "tokenizer.json"
    tokenizer.unlink()
    assert main(command) == 0
    assert tokenizer.is_file()
    vision = target / "vision.safetensors"
    good = vision.read_bytes()
    vision.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))  # one bit
    with monkeypatch.context() as patch:
        stop_after(0, patch)
        assert main(command) == 130
    with pytest.raises(UserError, match="no finished conversion"):
        QwenVLChat(str(target)).build()
    with monkeypatch.context() as patch:
        written = stop_after(9, patch)
        assert main(command) == 0
    assert [path.name.split(".")[1] for path in written] == ["vision"]
    assert vision.read_bytes() == good


def test_interrupted_before_the_first_file(tmp_path, source, monkeypatch):
    command = ["convert", "qwen-vl-chat", str(source), str(tmp_path / "target")]
    with monkeypatch.context() as patch:
        patch.setattr(qwen_vl_convert, "fast_tokenizer", lambda vocabulary: sys.exit(9))
        with pytest.raises(SystemExit):
            main(command)
    assert main(command) == 0


def test_one_source_file_is_mapped_at_a_time(source, tmp_path, monkeypatch):
    class Table(dict):
        pass

    alive, real = [], streaming._map

    def mapped(file):
        assert [table for table in alive if table() is not None] == []
        table = Table(real(file))
        alive.append(weakref.ref(table))
        return table

    monkeypatch.setattr(streaming, "_map", mapped)
    convert(source, tmp_path / "target")
    assert len(alive) >= 4  # each of two files to see what it holds, and to copy it


def change_config(folder, **changes):
    file = folder / "config.json"
    config = json.loads(file.read_text())
    visual = {key.removeprefix("visual_"): value for key, value in changes.items() if key.startswith("visual_")}
    config.update({key: value for key, value in changes.items() if not key.startswith("visual_")})
    config["visual"].update(visual)
    file.write_text(json.dumps(config))


def change_shard(folder, change):
    file = folder / "pytorch_model-00001-of-00002.bin"
    state = torch.load(file, weights_only=True)
    change(state)
    torch.save(state, file)


def first(state):
    return next(iter(state))


def rename(state):
    state["transformer.visual.extra"] = state.pop(first(state))


REFUSED = [
    (lambda f: (f / "config.json").unlink(), r"config\.json cannot be read: No such file or directory; give the folder into which Qwen/"),
    (lambda f: (f / "config.json").write_text("{"), r"config\.json is no config of Qwen-VL-Chat"),
    (lambda f: (f / "config.json").write_text("[]"), r"config\.json is no config of Qwen-VL-Chat"),
    (lambda f: (f / "config.json").write_text('{"hidden_size": 4}'), r"no config of Qwen-VL-Chat \(KeyError\('num_attention_heads'\)\)"),
    (lambda f: change_config(f, no_bias=False), r"no_bias=False is not as in Qwen-VL-Chat"),
    (lambda f: change_config(f, kv_channels=20), r"kv_channels=20 is not as in"),
    (lambda f: change_config(f, visual_output_dim=80), r"visual\.output_dim=80 is not as in"),
    (lambda f: change_config(f, visual_heads=5), r"visual\.heads=5 is not as in"),
    (lambda f: change_config(f, visual_heads="4"), r"config\.json: visual\.heads is '4', no number; get it again"),
    (lambda f: change_config(f, vocab_size=544.0), r"config\.json: vocab_size is 544\.0, no whole number"),
    (lambda f: change_config(f, num_hidden_layers=-1), r"config\.json: num_hidden_layers is -1, not above 0"),
    (lambda f: change_config(f, layer_norm_epsilon=math.nan), r"config\.json: layer_norm_epsilon is nan, no number"),
    (lambda f: change_config(f, max_position_embeddings=[8192]), r"config\.json: max_position_embeddings is \[8192\], no number"),
    (lambda f: change_config(f, visual_n_queries=15), r"visual\.n_queries=15 is not as in"),
    (
        lambda f: change_config(f, num_hidden_layers=3),
        r"do not fit its config\.json \(8 missing, first transformer\.h\.2\.attn\.c_attn\.bias\)",
    ),
    (lambda f: change_config(f, num_hidden_layers=1), r"\(8 unknown, first transformer\.h\.1\.attn\.c_attn\.bias\); download config and"),
    (
        lambda f: change_config(f, vocab_size=560),
        r"2 of another shape, first transformer\.wte\.weight is \(544, 40\) instead of \(560, 40\)",
    ),
    (
        lambda f: change_config(f, visual_image_start_id=531),
        r"qwen\.tiktoken has 316 tokens, which makes <img> 530, and .* says 531 of 544",
    ),
    (lambda f: (f / "qwen.tiktoken").unlink(), r"qwen\.tiktoken cannot be read"),
    (lambda f: (f / "pytorch_model.bin.index.json").unlink(), r"holds no model\.safetensors\.index\.json, .*; give the folder into which"),
    (lambda f: (f / "pytorch_model.bin.index.json").write_text("[]"), r"index\.json is no index of weights files; download it again"),
    (lambda f: (f / "pytorch_model.bin.index.json").write_text('{"weight_map": {}}'), r"index\.json is no index of weights files"),
    (lambda f: (f / "pytorch_model-00002-of-00002.bin").unlink(), r"lacks 1 of 2 weights files, first pytorch_model-00002-of-00002\.bin"),
    (lambda f: (f / "pytorch_model-00002-of-00002.bin").write_bytes(b"PK"), r"00002\.bin cannot be read: it is cut off, damaged"),
    (lambda f: torch.save({"a": Fraction(1, 2)}, f / "pytorch_model-00002-of-00002.bin"), r"00002\.bin holds more than tensors and is not"),
    (lambda f: torch.save([1], f / "pytorch_model-00002-of-00002.bin"), r"00002\.bin is no table of tensors"),
    (lambda f: change_shard(f, rename), r"\(1 missing, first lm_head\.weight; 1 unknown, first transformer\.visual\.extra\)"),
    (lambda f: change_shard(f, lambda s: s.update({first(s): s[first(s)].to(torch.int8)})), r"lm_head\.weight is torch\.int8; convert the"),
    (
        lambda f: change_shard(f, lambda s: s.update({"transformer.wte.weight": s[first(s)]})),
        r"00002\.bin: tensor transformer\.wte\.weight is in pytorch_model-00001-of-00002\.bin, too",
    ),
]


@pytest.mark.parametrize(("harm", "message"), REFUSED, ids=[message[-30:] for _, message in REFUSED])
def test_sources_that_are_refused_before_anything_is_written(source, tmp_path, harm, message):
    harm(source)
    with pytest.raises(UserError, match=message):
        convert(source, tmp_path / "target")
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_tensor_with_numbers_that_are_none_is_refused(source, tmp_path, value, capsys):
    change_shard(source, lambda state: state["transformer.h.0.attn.c_attn.weight"][3].fill_(value))
    assert main(["convert", "qwen-vl-chat", str(source), str(tmp_path / "target")]) == 2
    sentence = "00001-of-00002.bin: tensor transformer.h.0.attn.c_attn.weight holds NaN or infinite numbers; download the checkpoint again"
    assert sentence in capsys.readouterr().err
    assert not list((tmp_path / "target").rglob("*.safetensors"))
    assert not (tmp_path / "target" / "config.json").exists()


def test_parameters_are_tensors(source, tmp_path):
    change_shard(source, lambda state: state.update({name: torch.nn.Parameter(tensor) for name, tensor in state.items()}))
    assert "61 tensors became 69" in convert(source, tmp_path / "target")


def test_the_folder_does_not_depend_on_the_version_of_transformers(source, tmp_path):
    """An export names its base by the content of this folder."""
    convert(source, tmp_path / "target")
    assert not any(b"version" in file.read_bytes() for file in (tmp_path / "target" / "llm").glob("*config.json"))


def test_what_was_changed_since_is_found_without_the_source(source, tmp_path, capsys):
    target = tmp_path / "target"
    command = ["convert", "qwen-vl-chat", "--verify", str(target)]
    assert main(command) == 2
    assert f"{target} holds no finished conversion" in capsys.readouterr().err
    convert(source, target)
    shutil.rmtree(source)
    assert main(command) == 0
    assert capsys.readouterr().out == f"{target} is complete: all 7 files are as they were written\n"
    shard = target / "llm" / "model-00001-of-00001.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (target / "llm" / "tokenizer.json").unlink()
    assert main(command) == 2
    assert (
        f"{target}: 2 of 7 files are not as they were written, first llm/model-00001-of-00001.safetensors; run cir convert qwen-vl-chat "
        f"SRC {target}, which writes them again"
    ) in capsys.readouterr().err
    assert main(["convert", "qwen-vl-chat", "--verify"]) == 2
    assert main([*command, str(source)]) == 2
    assert "--verify takes DST alone" in capsys.readouterr().err


def test_a_spoilt_description_is_mended(source, tmp_path):
    target = tmp_path / "target"
    convert(source, target)
    file = target / "config.json"
    good = json.loads(file.read_text())
    files = {name: digest for name, digest in good["files"].items() if name != "vision.safetensors"}
    for spoilt in ({"vision": {"width": 99}}, {"files": files}):
        file.write_text(json.dumps(good | spoilt))
        assert "61 tensors became 69" in convert(source, target)
        assert json.loads(file.read_text()) == good


def test_killed_while_a_damaged_file_was_about_to_be_mended(source, tmp_path):
    """Both records are there then, and the one of progress lacks the damaged file."""
    target = tmp_path / "target"
    convert(source, target)
    about = json.loads((target / "config.json").read_text())
    del about["files"]["vision.safetensors"]
    (target / "progress.json").write_text(json.dumps({"source": about["source"], "files": about["files"]}))
    (target / "vision.safetensors").write_bytes(b"half")
    assert "61 tensors became 69" in convert(source, target)
    assert not (target / "progress.json").exists()


def test_a_cut_safetensors_file_and_a_single_file(tmp_path):
    source = qwen.checkpoint(tmp_path / "source", kind="safetensors")
    files = sorted(source.glob("*.safetensors"))
    together = {name: tensor for file in files for name, tensor in load_file(file).items()}
    whole = files[1].read_bytes()
    files[1].write_bytes(whole[:-10])
    with pytest.raises(UserError, match=r"model-00002-of-00002\.safetensors cannot be read: it is cut off, damaged"):
        convert(source, tmp_path / "target")
    (source / "model.safetensors.index.json").unlink()
    save_file({name: tensor.clone() for name, tensor in together.items()}, source / "model.safetensors")
    assert "61 tensors became 69" in convert(source, tmp_path / "target")


def test_targets_that_are_refused(source, tmp_path, monkeypatch):
    target = tmp_path / "target"
    target.mkdir()
    (target / "thesis.tex").touch()
    with pytest.raises(
        UserError, match=r"target is not empty \(it holds thesis\.tex\) and was not made by cir convert; choose another folder"
    ):
        convert(source, target)
    with pytest.raises(UserError, match=r"source/config\.json was not written by cir convert; choose another folder"):
        convert(source, source)
    (target / "thesis.tex").unlink()
    with FileLock(target / ".lock"), pytest.raises(UserError, match="another process is converting into"):
        convert(source, target)
    with pytest.raises(UserError, match=r"cannot write .*: Not a directory; make room or choose another folder"):
        convert(source, source / "config.json" / "target")
    with monkeypatch.context() as patch:
        patch.setattr(qwen_vl_convert.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 100_000}))
        with pytest.raises(UserError, match=r"0\.0 GB are to be written and 0\.0 GB are free; make room"):
            convert(source, target)
    convert(source, target)
    other = qwen.checkpoint(tmp_path / "other", dtype=torch.bfloat16)
    with pytest.raises(
        UserError, match="target is of another checkpoint or version, or the source's files were changed since; remove it or"
    ):
        convert(other, target)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["llava", "a", "b"], "cir: unknown checkpoint 'llava'; there are qwen-vl-chat"),
        (["qwen-vl-chat", "a"], "cir: DST is missing, the folder to write; cir convert --help shows what there is"),
        (["qwen-vl-chat", "a", "b", "--fast"], "cir: unrecognized arguments: --fast; cir convert --help shows what there is"),
        (["qwen-vl-chat", "none", "b"], "cir: none/config.json cannot be read: No such file or directory; give the folder into which "),
    ],
)
def test_the_command_refuses_in_one_sentence(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["convert", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(message)


def test_help_is_light():
    code = "import sys; from cir_lightning.cli import main\ntry: main(['convert', '--help'])\nfinally: print(sorted(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.startswith("usage: cir convert [-h] [--verify] NAME")
    assert "'torch'" not in run.stdout
    assert "'transformers'" not in run.stdout
