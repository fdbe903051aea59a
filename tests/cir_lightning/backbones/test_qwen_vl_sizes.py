"""The real Qwen-VL-Chat by arithmetic, without its weights: names, shapes and bytes are those of the published index."""

from __future__ import annotations

import json
import math
from collections import Counter

from cir_lightning.backbones import qwen_vl_convert
from cir_lightning.backbones.qwen_vl_convert import layout, plan_files, read_settings

PUBLISHED = {  # config.json of Qwen/Qwen-VL-Chat
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "kv_channels": 128,
    "layer_norm_epsilon": 1e-06,
    "max_position_embeddings": 8192,
    "no_bias": True,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "rotary_emb_base": 10000,
    "rotary_pct": 1.0,
    "tie_word_embeddings": False,
    "vocab_size": 151936,
    "visual": {
        "heads": 16,
        "image_size": 448,
        "image_start_id": 151857,
        "layers": 48,
        "mlp_ratio": 4.9231,
        "output_dim": 4096,
        "patch_size": 14,
        "width": 1664,
    },
}
BLOCK = {"attn.in_proj": 2, "attn.out_proj": 2, "ln_1": 2, "ln_2": 2, "mlp.c_fc": 2, "mlp.c_proj": 2}  # weight and bias


def test_the_real_sizes_are_the_published_ones(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
    parts = layout(read_settings(tmp_path))
    source = {piece.source: piece.source_shape for pieces in parts.values() for piece in pieces.values()}
    numbers = {part: sum(math.prod(piece.shape) for piece in pieces.values()) for part, pieces in parts.items()}
    assert numbers == {"llm": 7_721_324_544, "vision.safetensors": 1_842_770_688, "connector.safetensors": 92_839_936}
    assert len(source) == 853
    assert 2 * sum(map(math.prod, source.values())) == 19_313_870_336  # total_size in the published index, all of it bfloat16
    roles = Counter(".".join(part for part in name.split(".") if not part.isdigit()) for name in source)
    assert roles.pop("transformer.h.attn.c_attn.bias") == 32
    assert {name: n for name, n in roles.items() if n > 1} == {
        **{f"transformer.h.{role}.weight": 32 for role in ("attn.c_attn", "attn.c_proj", "ln_1", "ln_2", "mlp.w1", "mlp.w2", "mlp.c_proj")},
        **{f"transformer.visual.transformer.resblocks.{role}.{kind}": 48 for role in BLOCK for kind in ("weight", "bias")},
    }
    assert source["transformer.h.31.attn.c_attn.weight"] == (12288, 4096)
    assert source["transformer.h.0.mlp.w1.weight"] == (11008, 4096)
    assert source["transformer.visual.positional_embedding"] == (256, 1664)
    assert source["transformer.visual.attn_pool.pos_embed"] == source["transformer.visual.attn_pool.query"] == (256, 4096)
    assert source["transformer.visual.transformer.resblocks.47.mlp.c_fc.weight"] == (8192, 1664)
    assert source["transformer.visual.attn_pool.attn.in_proj_weight"] == (12288, 4096)
    plan = plan_files(parts, lambda piece: 2 * math.prod(piece.shape), qwen_vl_convert.SHARD)
    assert len(plan) == 10
    assert sum(len(pieces) for pieces in plan.values()) == 387 + 580 + 14
    assert max(2 * sum(math.prod(p.shape) for p in ps.values()) for name, ps in plan.items() if name.startswith("llm")) < 2_000_000_000
