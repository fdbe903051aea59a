"""Every family of LVLMs that transformers has and this project knows: the real classes and file layouts, 2 layers, random weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import transformers

from fakes.tiny import tiny_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

SIDE, PATCH = 56, 14
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
SQUARE = {**VISION, "image_size": SIDE, "patch_size": PATCH}
TEXT = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 400,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
IMAGE, VIDEO, START, END = 390, 391, 392, 393  # token ids
QWEN = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END}
QWEN_VISION = {
    "depth": 3,
    "hidden_size": 32,
    "num_heads": 4,
    "intermediate_size": 64,
    "patch_size": PATCH,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
QFORMER = {
    "hidden_size": 32,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "encoder_hidden_size": 32,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
TILES = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
WHOLE = {"height": SIDE, "width": SIDE}


CHAT = "{% for m in messages %}<u>{{ m['content'] }}</u>{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"


def sections(words: dict[str, Any]) -> list[int]:
    """How many of a head's pairs rotate with time, height and width."""
    pairs = words["hidden_size"] // words["num_attention_heads"] // 2
    return [pairs - 2 * (pairs // 3), pairs // 3, pairs // 3]


def tiny_config(family: str, **text: Any) -> Any:
    """The configuration of a tiny model; options are its language model's."""
    words = {**TEXT, **text}
    rotated = {**words, "rope_parameters": {**ROPE, "mrope_section": sections(words)}}
    projected = {**QWEN_VISION, "out_hidden_size": words["hidden_size"]}
    clip, siglip = transformers.CLIPVisionConfig(**SQUARE), transformers.SiglipVisionConfig(**SQUARE)
    llama = transformers.LlamaConfig(**words)
    made = {
        "blip-2": lambda: transformers.Blip2Config(
            vision_config=SQUARE,
            qformer_config=QFORMER,
            text_config=transformers.OPTConfig(
                vocab_size=400,
                hidden_size=words["hidden_size"],
                word_embed_proj_dim=words["hidden_size"],
                ffn_dim=words["intermediate_size"],
                num_hidden_layers=2,
                num_attention_heads=4,
                dropout=0.0,
            ),
            image_token_index=IMAGE,
            num_query_tokens=4,
        ),
        "llava": lambda: transformers.LlavaConfig(vision_config=clip, text_config=llama, image_token_index=IMAGE),
        "llava_next": lambda: transformers.LlavaNextConfig(
            vision_config=clip, text_config=llama, image_token_index=IMAGE, image_grid_pinpoints=TILES
        ),
        "qwen2_vl": lambda: transformers.Qwen2VLConfig(
            vision_config={**projected, "embed_dim": 32, "hidden_size": words["hidden_size"], "mlp_ratio": 2}, text_config=rotated, **QWEN
        ),
        "qwen2_5_vl": lambda: transformers.Qwen2_5_VLConfig(
            vision_config={**projected, "fullatt_block_indexes": [1], "window_size": 28}, text_config=rotated, **QWEN
        ),
        "qwen3_vl": lambda: transformers.Qwen3VLConfig(
            vision_config={**projected, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]},
            text_config={**rotated, "head_dim": words["hidden_size"] // 4},
            **QWEN,
        ),
        "smolvlm": lambda: transformers.SmolVLMConfig(vision_config=SQUARE, text_config=llama, image_token_id=IMAGE, scale_factor=2),
        "idefics3": lambda: transformers.Idefics3Config(vision_config=SQUARE, text_config=llama, image_token_id=IMAGE, scale_factor=2),
        "internvl": lambda: transformers.InternVLConfig(
            vision_config={**VISION, "image_size": [SIDE, SIDE], "patch_size": [PATCH, PATCH]},
            text_config=transformers.Qwen2Config(**words),
            image_token_id=IMAGE,
        ),
        "paligemma": lambda: transformers.PaliGemmaConfig(
            vision_config=siglip,
            text_config=transformers.GemmaConfig(**words, head_dim=words["hidden_size"] // 4),
            image_token_index=IMAGE,
            projection_dim=words["hidden_size"],
            hidden_size=words["hidden_size"],
        ),
        "gemma3": lambda: transformers.Gemma3Config(
            vision_config=siglip,
            text_config=transformers.Gemma3TextConfig(**words, head_dim=words["hidden_size"] // 4),
            image_token_index=IMAGE,
            mm_tokens_per_image=4,
        ),
    }
    return made[family]()


def tiny_processor(family: str) -> Any:
    """The family's image processor for pictures of the tiny size."""
    shortest = {"size": {"shortest_edge": SIDE}, "crop_size": WHOLE}
    limits = {"size": {"shortest_edge": SIDE * SIDE // 4, "longest_edge": 4 * SIDE * SIDE}}
    qwen = "Qwen2VL", {**limits, "patch_size": PATCH, "merge_size": 2, "temporal_patch_size": 2}
    idefics = {"size": {"longest_edge": SIDE}, "max_image_size": {"longest_edge": SIDE}}
    name, options = {
        "blip-2": ("Blip", {"size": WHOLE}),
        "llava": ("CLIP", shortest),
        "llava_next": ("LlavaNext", {**shortest, "image_grid_pinpoints": TILES}),
        "qwen2_vl": qwen,
        "qwen2_5_vl": qwen,
        "qwen3_vl": qwen,
        "smolvlm": ("SmolVLM", idefics),
        "idefics3": ("Idefics3", idefics),
        "internvl": ("GotOcr2", {"size": WHOLE}),
        "paligemma": ("Siglip", {"size": WHOLE}),
        "gemma3": ("Gemma3", {"size": WHOLE}),
    }[family]
    return getattr(transformers, f"{name}ImageProcessorPil")(**options)


def write_lvlm(family: str, folder: Path, seed: int = 0, **text: Any) -> Path:
    """Save a tiny model with its LM head, its tokenizer and its image processor, as they lie on the hub."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForImageTextToText.from_config(tiny_config(family, **text))
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)  # norms and biases, too
    model.save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": tokenizer.pad_token or "<pad>"})
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    tiny_processor(family).save_pretrained(folder)
    return folder
