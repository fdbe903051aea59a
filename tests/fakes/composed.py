"""Vision towers and LLMs that have never seen each other: the real classes and file layouts, 2 layers, random weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import transformers

from fakes.lvlms import SIDE, SQUARE, TEXT, VISION
from fakes.tiny import tiny_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

SIZE = {"height": SIDE, "width": SIDE}
TOWERS = {  # configuration, image processor, tokens before the patches
    "siglip": (transformers.SiglipVisionConfig(**SQUARE), transformers.SiglipImageProcessorPil(size=SIZE), 0),
    "siglip with text": (
        transformers.SiglipConfig(vision_config=SQUARE, text_config={**VISION, "vocab_size": 100}),
        transformers.SiglipImageProcessorPil(size=SIZE),
        0,
    ),
    "clip": (
        transformers.CLIPVisionConfig(**SQUARE),
        transformers.CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SIZE),
        1,
    ),
    "dinov2 with registers": (
        transformers.Dinov2WithRegistersConfig(**{**SQUARE, "mlp_ratio": 2}, num_register_tokens=3),
        transformers.BitImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SIZE),
        4,
    ),
}
LLMS = {
    "llama": transformers.LlamaConfig(**TEXT),
    "qwen3": transformers.Qwen3Config(**TEXT, head_dim=12),
    "gemma2": transformers.Gemma2Config(**TEXT, head_dim=12),
}


def save_tower(name: str, folder: Path) -> tuple[Any, Any, int]:
    """Save a vision model with its image processor; what was saved, and how many tokens stand before the patches."""
    config, processor, before = TOWERS[name]
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config).eval()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return getattr(model, "vision_model", model), processor, before


def save_llm(name: str, folder: Path) -> Any:
    """Save a language model with its head and its tokenizer; the model."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(LLMS[name]).eval()
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return model
