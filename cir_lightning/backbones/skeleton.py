"""Models without weights: what ``cir estimate`` needs of a checkpoint is its ``config.json``.

Within ``with torch.device("meta")`` every backbone builds its real modules, whose tensors have shapes and no memory. This module stands in
for what cannot be had that way: a tokenizer that is not there, and the number of visual tokens, for which a picture is otherwise sent
through the vision tower.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedConfig

TOKENS_PER_WORD = 1.3  # of English text in vocabularies of 32,000 to 250,000 tokens


def on_meta() -> bool:
    """Whether torch's default device is ``meta``: nothing is to be read or computed."""
    return torch.get_default_device().type == "meta"


class CountingTokenizer:
    """Says about how many tokens a text has, where a checkpoint's own tokenizer is not at hand.

    Attributes:
        bos_token_id: a token at the beginning, as most language models have it.
    """

    bos_token_id = 0
    bos_token = eos_token = None
    chat_template = "a token before and two after the user's turn"

    def apply_chat_template(self, turns: Sequence[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool) -> str:  # noqa: ARG002
        """The user's words with what chat templates put around them."""
        return f"<|user|> {turns[0]['content']} <|end|>{' <|assistant|>' if add_generation_prompt else ''}"

    def __call__(self, texts: str | Sequence[str], **_: bool) -> dict[str, Any]:
        """Token ids, all of them 0, of a text or of several.

        >>> len(CountingTokenizer()("make it a darker blue")["input_ids"])
        6
        """
        if isinstance(texts, str):
            return {"input_ids": [0] * round(TOKENS_PER_WORD * len(texts.split()))}
        return {"input_ids": [self(text)["input_ids"] for text in texts]}


def vision_shape(config: PreTrainedConfig, image_size: int, *, native: bool) -> tuple[int, int]:
    """Number and width of what the vision part of one of transformers' LVLMs makes of a square picture, by arithmetic.

    Args:
        config: of the whole LVLM.
        image_size: side of the picture, pixels.
        native: whether of the visual tokens (the projector's output), not of the patch features (its input).

    Returns:
        (N, Dv) of patch features; (V, D and D more for each deep-stacked level) of visual tokens.
    """
    vision, kind = config.vision_config, str(config.model_type)
    width = int(vision.embed_dim if kind == "qwen2_vl" else vision.hidden_size)
    side = _side(config) if kind != "llava_next" and "qwen" not in kind else image_size
    grid = side // _square(vision.patch_size)
    patches = tokens = grid * grid
    if "qwen" in kind:
        tokens //= vision.spatial_merge_size**2
    elif kind in {"smolvlm", "idefics3"}:
        tokens //= config.scale_factor**2
    elif kind == "internvl":
        width = round(width / config.downsample_ratio**2)
        patches = tokens = round(patches * config.downsample_ratio**2)
    elif kind == "blip-2":
        patches, tokens = patches + 1, config.num_query_tokens  # with the class token
    elif kind == "gemma3":
        tokens = config.mm_tokens_per_image
    elif kind == "llava_next":
        patches, tokens = _tiles(config, image_size)
    if not native:
        layers = getattr(config, "vision_feature_layer", None)
        return patches, width * (len(layers) if isinstance(layers, list | tuple) else 1)
    return tokens, config.get_text_config().hidden_size * (1 + len(getattr(vision, "deepstack_visual_indexes", ())))


def _side(config: PreTrainedConfig) -> int:
    """The side that pictures are brought to, whatever they were."""
    return _square(config.vision_config.image_size)


def _square(size: Any) -> int:
    return int(size[0] if isinstance(size, list | tuple) else size)


def _tiles(config: PreTrainedConfig, image_size: int) -> tuple[int, int]:
    """LLaVA-1.6: patch features of an overview and of the tiles; tokens of the overview and of the map that the tiles make.

    The map is cut to the picture's proportions, and every row of it ends with a token of its own.
    """
    from transformers.image_processing_utils import select_best_resolution

    side = _side(config)
    grid = side // _square(config.vision_config.patch_size)
    height, width = select_best_resolution((image_size, image_size), config.image_grid_pinpoints)
    rows, columns = (grid * length // side for length in (height, width))
    shorter = min(rows, columns)
    rows, columns = (length - 2 * ((length - shorter) // 2) for length in (rows, columns))
    return grid * grid * (1 + (height // side) * (width // side)), grid * grid + rows * (columns + 1)
