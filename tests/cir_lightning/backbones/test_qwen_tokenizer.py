"""The fast tokenizer gives tiktoken's ids; how they were made: ``fakes.qwen``."""

from __future__ import annotations

import base64

import pytest
from fakes import qwen
from transformers import PreTrainedTokenizerFast

from cir_lightning.backbones.qwen_tokenizer import END, SPECIAL, fast_tokenizer, read_vocabulary
from data_modules.errors import UserError

TOKENS, TEXTS = qwen.vocabulary()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    fast_tokenizer(TOKENS).save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.mark.parametrize("row", TEXTS, ids=[repr(row["text"][:12]) for row in TEXTS])
def test_ids_are_tiktokens(tokenizer, row):
    assert tokenizer(row["text"])["input_ids"] == row["ids"]


def test_every_token_is_itself_and_text_comes_back(tokenizer):
    words = [(rank, token.decode()) for rank, token in enumerate(TOKENS) if _is_text(token)]
    whole = [rank for rank, word in words if tokenizer(word)["input_ids"] == [rank]]
    assert len(whole) > 0.95 * len(words)  # the rest are several words at once
    text = "the red dress, 图片 👗 — 12 <img>x</img>\r\n"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids, skip_special_tokens=True) == text.replace("<img>", "").replace("</img>", "")


def _is_text(token):
    try:
        return bool(token.decode())
    except UnicodeDecodeError:
        return False


def test_special_tokens_follow_the_vocabulary(tokenizer):
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL)) == [*range(len(TOKENS), len(TOKENS) + 217)]
    assert SPECIAL.index("<img>") == 214  # 151643 + 214 = 151857, the published image_start_id
    assert (tokenizer.pad_token, tokenizer.eos_token, tokenizer.bos_token) == (END, END, None)
    batch = tokenizer(["the", "the red dress"], padding=True)
    assert batch["input_ids"][0][-1] == tokenizer.pad_token_id
    assert batch["attention_mask"][0][-1] == 0


def lines(tokens):
    return [base64.b64encode(token) + b" %d" % rank for rank, token in enumerate(tokens)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: [*rows[:5], b"=== 5", *rows[6:]], r"line 6: b'=== 5' is no token with its rank; download the file again"),
        (lambda rows: [*rows[:5], b"", *rows[6:]], r"line 6: b'' is no token"),
        (lambda rows: [*rows[:5], b"IQ==", *rows[6:]], r"line 6: b'IQ==' is no token"),
        (lambda rows: rows[:200], r"single bytes are missing"),
        (lambda rows: rows[:300] + rows[301:], r"ranks or single bytes are missing or stand there twice"),
        (lambda rows: [*rows, b"IQ== %d" % len(rows)], r"stand there twice"),
        (lambda rows: [], r"are missing"),
    ],
)
def test_a_damaged_vocabulary(tmp_path, change, message):
    file = tmp_path / "qwen.tiktoken"
    file.write_bytes(b"\n".join(lines(TOKENS)) + b"\n")
    assert read_vocabulary(file) == TOKENS
    file.write_bytes(b"\n".join(change(lines(TOKENS))))
    with pytest.raises(UserError, match=message):
        read_vocabulary(file)


def test_no_vocabulary(tmp_path):
    with pytest.raises(UserError, match=r"qwen\.tiktoken cannot be read: No such file or directory; download it with the checkpoint"):
        read_vocabulary(tmp_path / "qwen.tiktoken")
