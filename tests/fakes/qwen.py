"""A Qwen-VL-Chat checkpoint of tiny size in the published layout, from tensors that the original modelling code made.

How ``golden/qwen_vl_tiny.safetensors`` came into being: ``modeling_qwen.py``, ``visual.py`` and ``configuration_qwen.py`` of
Qwen/Qwen-VL-Chat ran on torch 2.13 and transformers 5.23 in float32, with random weights rounded to bfloat16. They were read from the
public mirror Immerso-AIIP-Ltd/Qwen-VL-Chat at 4582d23; the copy in peace-zy/Qwen-VL at e3898dd has the same arithmetic. Patched:
torchvision's transforms (not used) and the method ``get_head_mask`` that transformers dropped were replaced by stubs, heads of the
resampler are 10 wide instead of 128, and ``encode`` was given pixels instead of paths. The file holds the state dict (``state.*``,
bfloat16), the config (metadata), uint8 pixels of three sides, the ViT's features, the resampler's tokens, token ids and hidden states.

``golden/qwen_tokens.json``: a small vocabulary, and the ids that tiktoken 0.14.0 gives with the original pattern after NFC.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from safetensors.torch import save_file

if TYPE_CHECKING:
    from torch import Tensor

GOLDEN = Path(__file__).parents[1] / "cir_lightning" / "backbones" / "golden"
HEAD = 10  # width of a head of its resampler


def golden() -> tuple[dict[str, Tensor], dict]:
    """Tensors by name, and the config."""
    with safe_open(GOLDEN / "qwen_vl_tiny.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["config"])  # noqa: SIM118


def vocabulary() -> tuple[list[bytes], list[dict]]:
    """Tokens in the order of their ids; texts with their ids."""
    content = json.loads((GOLDEN / "qwen_tokens.json").read_text())
    return [base64.b64decode(token) for token in content["ranks"]], content["texts"]


def checkpoint(folder: Path, *, kind: str = "bin", dtype: torch.dtype = torch.float32) -> Path:
    """Write the checkpoint as it would be downloaded, in two shards.

    Args:
        folder: new.
        kind: of the shards: ``bin`` or ``safetensors``.
        dtype: of the tensors.
    """
    folder.mkdir(parents=True)
    tensors, config = golden()
    state = {name.removeprefix("state."): t.to(dtype) for name, t in tensors.items() if name.startswith("state.")}
    names = sorted(state)
    shards = {1: names[: len(names) // 2], 2: names[len(names) // 2 :]}
    stem, ending = ("model", "safetensors") if kind == "safetensors" else ("pytorch_model", "bin")
    files = {at: f"{stem}-{at:05d}-of-00002.{ending}" for at in shards}
    for at, part in shards.items():
        save = save_file if kind == "safetensors" else torch.save
        save({name: state[name].clone() for name in part}, folder / files[at])
    index = {"metadata": {}, "weight_map": {name: files[at] for at, part in shards.items() for name in part}}
    (folder / f"{stem}.{ending}.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config))
    lines = [base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(vocabulary()[0])]
    (folder / "qwen.tiktoken").write_bytes(b"".join(lines))
    return folder
