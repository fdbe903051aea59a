"""Qwen's tiktoken vocabulary as a fast byte-level BPE tokenizer.

Source: format of tiktoken's files; pattern, normal form and special tokens from ``tokenization_qwen.py`` of Qwen/Qwen-VL-Chat.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

from data_modules.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerFast

PATTERN = (  # of the words that BPE never crosses
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
END = "<|endoftext|>"
SPECIAL = (
    *(END, "<|im_start|>", "<|im_end|>"),
    *(f"<|extra_{i}|>" for i in range(205)),
    *("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<img>", "</img>", "<imgpad>"),
)  # their ids follow the vocabulary's, in this order
MAX_TOKENS = 8192


def read_vocabulary(file: Path) -> list[bytes]:
    """Tokens in the order of their ranks, which are their ids.

    Args:
        file: lines of a token in base64 and its rank.

    Raises:
        UserError: the file is missing, a line is no token, or ranks or single bytes are missing.
    """
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}; download it with the checkpoint") from error
    ranks: dict[int, bytes] = {}
    for number, line in enumerate(lines, 1):
        try:
            token, rank = line.split()
            ranks[int(rank)] = base64.b64decode(token, validate=True)
        except ValueError as error:
            raise UserError(f"{file}, line {number}: {line[:40]!r} is no token with its rank; download the file again") from error
    known = set(ranks.values())
    if sorted(ranks) != list(range(len(lines))) or len(known) < len(ranks) or not known.issuperset(bytes([b]) for b in range(256)):
        raise UserError(f"{file}: tokens, ranks or single bytes are missing or stand there twice; download the file again")
    return [ranks[rank] for rank in range(len(ranks))]


def fast_tokenizer(vocabulary: list[bytes]) -> PreTrainedTokenizerFast:
    """A tokenizer that gives the ids of the original one, for text in any writing.

    tiktoken takes a word that is a token as a whole, and otherwise joins the two neighbours whose union has the lowest rank. So every way
    of cutting a token in two tokens is a merge here, in the order of the joined tokens' ranks.

    Args:
        vocabulary: tokens in the order of their ids.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = {token: _printable(token) for token in vocabulary}
    cuts = ((token[:at], token[at:]) for token in vocabulary for at in range(1, len(token)))
    merges = [(names[left], names[right]) for left, right in cuts if left in names and right in names]
    ids = {name: rank for rank, name in enumerate(names.values())}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges, ignore_merges=True))
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    options = {"eos_token": END, "pad_token": END, "model_max_length": MAX_TOKENS}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)  # type: ignore[no-untyped-call]


def _printable(token: bytes) -> str:
    return "".join(_CHARACTERS[byte] for byte in token)


def _byte_characters() -> dict[int, str]:
    """One visible character per byte, as GPT-2's byte-level BPE has them: itself, or else the next one from U+0100 on."""
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = (byte for byte in range(256) if byte not in visible)
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + at) for at, byte in enumerate(hidden)}


_CHARACTERS = _byte_characters()
