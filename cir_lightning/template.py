"""Prompt templates with holes: a query or a target is text around image tokens, soft prompts and the caption.

Shapes: B batch, Q image tokens, V native visual tokens, T soft prompt tokens, L longest sequence, D LLM width.
"""

from __future__ import annotations

import re
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from data_modules.errors import UserError
from data_modules.stages import CAPTION, stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn
    from transformers import PreTrainedTokenizerBase

HOLES = ("image", "vision", "soft", "caption")
Positions = Literal["all", "after_image", "answer"]
_HOLE = re.compile(r"\{(\w*)\}")
_IMAGE, _SOFT, _VISION, _PAD = -1, -2, -3, -4  # marks among the token ids


class Prompt(NamedTuple):
    """The LLM's input, padded on the right.

    Attributes:
        embeds: (B, L, D) float.
        mask: (B, L) long, 1 for a real position.
        seen: (B, L) bool, where the V native visual tokens belong.
        pooled: (B, L) bool, the positions that the embedding is pooled from.
    """

    embeds: Tensor
    mask: Tensor
    seen: Tensor
    pooled: Tensor


class Template:
    """A task prompt such as ``"{image}{soft} Edit: {caption}"``.

    Args:
        text: the prompt with holes, each at most once: ``{image}`` for the Connector's tokens, ``{vision}`` for the LVLM's own visual
            tokens, at least one of both; ``{soft}``, ``{caption}``.
        key: where the text comes from, for error messages.
        pooled: which positions the embedding is pooled from: all, those after the last image, or where the assistant would answer.
        answer: what begins the assistant's answer, in a chat.

    Raises:
        UserError: an unknown, missing or repeated hole, or nothing after the image although that is to be pooled.
    """

    def __init__(self, text: str, key: str, pooled: Positions = "all", answer: str = "") -> None:
        self.text, self.key, self.pooled, self.answer = text, key, pooled, answer
        holes = _HOLE.findall(text)
        if unknown := sorted(set(holes) - set(HOLES)):
            raise UserError(f"{key}={text!r} has the unknown hole {{{unknown[0]}}}; holes are {', '.join(f'{{{h}}}' for h in HOLES)}")
        if not {"image", "vision"} & set(holes) or len(set(holes)) < len(holes):
            raise UserError(f"{key}={text!r} must have the hole {{image}} or {{vision}} and no hole twice")
        pieces = _HOLE.split(text)  # text, hole, text, hole, ... text
        self.space = ""
        if "caption" in holes:
            before = pieces.index("caption", 1) - 1
            self.space = " " if pieces[before].endswith(" ") else ""  # tokenisers read " word" as one token
            pieces[before] = pieces[before].removesuffix(" ")
        self.parts = [(piece, at % 2 == 1) for at, piece in enumerate(pieces) if piece]
        self.has_caption, self.has_soft = "caption" in holes, "soft" in holes
        self.has_image, self.has_vision = "image" in holes, "vision" in holes
        self.last_image = max(at for at, part in enumerate(self.parts) if part in {("image", True), ("vision", True)})
        if pooled == "after_image" and self.last_image == len(self.parts) - 1 and not answer:
            raise UserError(
                f"{key}={text!r} has nothing after its image, and positions is 'after_image'; write something there, or set 'all'"
            )

    def around(self, before: str, after: str) -> Template:
        """The prompt with text around its visual tokens, unless it has that already."""
        whole = f"{before}{{vision}}{after}"
        if whole in self.text:
            return self
        return Template(self.text.replace("{vision}", whole), self.key, self.pooled, self.answer)

    def in_chat(self, tokenizer: PreTrainedTokenizerBase) -> Template:
        """The prompt as the user's turn in the tokenizer's chat template, with the beginning of the assistant's turn.

        Raises:
            UserError: the tokenizer has no chat template, or one that changes the prompt.
        """
        if not tokenizer.chat_template:
            raise UserError(f"{self.key}: chat is on, but the tokenizer has no chat template; set model.encoder.init_args.chat to false")
        text = self.text.strip()  # as some templates do
        for content in (text, [{"type": "text", "text": text}]):  # multimodal templates want parts
            asked = _render(tokenizer, content, answer=False)
            whole = _render(tokenizer, content, answer=True)
            if text in asked and whole.startswith(asked):
                break
        else:
            raise UserError(f"{self.key}={self.text!r} does not come out of the tokenizer's chat template as it is; set chat to false")
        bos = tokenizer.bos_token or ""
        if whole == asked and self.pooled == "answer":
            raise UserError(
                f"{self.key}: positions is 'answer', but the tokenizer's chat template does not begin one; set after_image or all"
            )
        whole, asked = whole.removeprefix(str(bos)), asked.removeprefix(str(bos))
        question = asked.rstrip(" ") if whole != asked else asked  # tokenisers read " word" as one token
        return Template(question, self.key, self.pooled, whole[len(question) :])


class TaskPrompt:
    """A template whose text is tokenised, once.

    Args:
        template: the task prompt.
        tokenizer: the LLM's.
        ends: token ids before and after everything; None puts the tokenizer's beginning-of-sequence token first, if it has one (it
            takes the attention sink), and nothing last.
    """

    def __init__(self, template: Template, tokenizer: PreTrainedTokenizerBase, ends: tuple[list[int], list[int]] | None = None) -> None:
        self.template, self.tokenizer = template, tokenizer
        self.first, self.last = ends or ([] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id], [])
        self.parts: list[tuple[str, list[int]]] = []  # the name of a hole and nothing, or no name and token ids
        image = tokenizer.eos_token or ""  # families tokenise their image token as a special one
        before = self.before_caption = ""
        for part, is_hole in template.parts:
            self.parts.append((part, []) if is_hole else ("", tokens(tokenizer, [part], before, special=True)[0]))
            if part == "caption" and is_hole:
                begins = tokens(tokenizer, ["a"], before, special=True) == tokens(tokenizer, ["a"], "")
                self.before_caption = "" if begins else "\n"
            before = image if is_hole and part != "caption" else "\n"
        self.parts.append(("", tokens(tokenizer, [template.answer], before, special=True)[0]))

    def fill(self, embed: nn.Module, image: Tensor, soft: Tensor, captions: Sequence[str] | None, vision: int = 0) -> Prompt:
        """The LLM's input.

        Args:
            embed: the LLM's token embedding.
            image: (B, Q, D) float, in the embedding's scale.
            soft: (B, T, D) float, in the embedding's scale; T may be 0.
            captions: B captions; None for a template without ``{caption}``.
            vision: V.
        """
        marks = {"image": [_IMAGE] * image.shape[1], "soft": [_SOFT] * soft.shape[1], "vision": [_VISION] * vision}
        parts = [marks.get(hole, ids) for hole, ids in self.parts]
        hole = self.parts.index(("caption", [])) if self.template.has_caption else len(parts)
        before, after = [*self.first, *chain(*parts[:hole])], [*chain(*parts[hole:]), *self.last]
        texts = [self.template.space + caption for caption in captions or ()]
        with stage(CAPTION):
            words = tokens(self.tokenizer, texts, self.before_caption) if texts else [[]] * len(image)
        rows = [torch.tensor(before + caption + after) for caption in words]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=_PAD).to(image.device)
        embeds = embed(ids.clamp_min(0)).to(torch.promote_types(image.dtype, soft.dtype))
        embeds = embeds.masked_scatter((ids == _IMAGE)[..., None], image.to(embeds.dtype))
        embeds = embeds.masked_scatter((ids == _SOFT)[..., None], soft.to(embeds.dtype))
        real = ids != _PAD
        start = {"all": 0, "after_image": self.template.last_image + 1, "answer": len(parts) - 1}[self.template.pooled]
        skipped = [(len(self.first) + sum(map(len, parts[:start])) + len(caption) * (start > hole)) * (start > 0) for caption in words]
        pooled = torch.arange(ids.shape[1], device=ids.device) >= torch.tensor(skipped, device=ids.device)[:, None]
        return Prompt(embeds, real.long(), ids == _VISION, real & pooled)


def tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], before: str, *, special: bool = False) -> list[list[int]]:
    r"""Token ids of texts that go on after another one, where sentencepiece must not put a space before them.

    Args:
        tokenizer: any.
        texts: to be tokenised.
        before: what they follow: ``"\n"`` stands for any text, which no tokeniser merges with a word; a special token for itself.
        special: whether special tokens in them are such, not text, as ``<image>`` in a caption is.
    """

    def ids(texts: Sequence[str]) -> list[list[int]]:
        found: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=not special)["input_ids"]
        return found

    lead = ids([before])[0]
    behind = ids([before + text for text in texts])
    return [row[len(lead) :] if row[: len(lead)] == lead else ids([text])[0] for row, text in zip(behind, texts, strict=True)]


def _render(tokenizer: PreTrainedTokenizerBase, content: object, *, answer: bool) -> str:
    """The chat template's text; empty if the template cannot take this kind of content."""
    from jinja2 import TemplateError

    try:
        turns: list[Any] = [{"role": "user", "content": content}]
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer))
    except (TemplateError, TypeError):
        return ""
