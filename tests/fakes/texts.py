"""Picture-and-text checkpoints with a text encoder: the real classes and file layouts, 2 layers, random weights."""

from __future__ import annotations

import string
from typing import TYPE_CHECKING, Any

import torch
import transformers

from fakes.lvlms import SQUARE, WHOLE
from fakes.tiny import WORDS

if TYPE_CHECKING:
    from pathlib import Path

POSITIONS = 77
TEXT = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": POSITIONS}
LETTERS = (*string.ascii_lowercase, *string.digits, *string.punctuation)


def clip_tokenizer() -> Any:
    """CLIP's, with single characters as its vocabulary."""
    tokens = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer(vocab={token: at for at, token in enumerate(tokens)}, merges=[])


def bert_tokenizer() -> Any:
    """BERT's, which knows the tiny benchmark's words, with the further first token that BLIP-2 gave it."""
    words = sorted({word.lower() for word in WORDS} - {*LETTERS})
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS), *words]
    tokenizer = transformers.BertTokenizer(vocab={token: at for at, token in enumerate(tokens)})
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    return tokenizer


def _clip() -> tuple[Any, Any, Any]:
    tokenizer = clip_tokenizer()
    ids = {"vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id, "eos_token_id": 2}  # 2 as in OpenAI's files
    config = transformers.CLIPConfig(text_config={**TEXT, **ids}, vision_config=SQUARE, projection_dim=16)
    processor = transformers.CLIPImageProcessorPil(size={"shortest_edge": SQUARE["image_size"]}, crop_size=WHOLE)
    return transformers.CLIPModel(config), tokenizer, processor


def _blip2(*, text_layers: bool = True) -> tuple[Any, Any, Any]:
    tokenizer = bert_tokenizer()
    reads = {"vocab_size": len(tokenizer), "use_qformer_text_input": text_layers}
    sees = {"encoder_hidden_size": SQUARE["hidden_size"], "cross_attention_frequency": 2}
    config = transformers.Blip2Config(
        vision_config=SQUARE, qformer_config={**TEXT, **reads, **sees}, image_text_hidden_size=16, num_query_tokens=4
    )
    return transformers.Blip2ForImageTextRetrieval(config), tokenizer, transformers.BlipImageProcessorPil(size=WHOLE)


def write_text(kind: str, folder: Path, **options: Any) -> Path:
    """Save a tiny ``clip`` or ``blip-2`` with its tokenizer and its image processor, as they lie on the hub."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = {"clip": _clip, "blip-2": _blip2}[kind](**options)
        for parameter in parts[0].parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)  # norms and biases, too
    for part in parts:
        part.save_pretrained(folder)
    return folder
