"""Templates against token ids put together by hand."""

import pytest
import torch
from fakes.tiny import tiny_tokenizer
from torch import nn

from cir_lightning.template import Template
from data_modules.errors import UserError

D = 6
TOKENIZER = tiny_tokenizer()
EMBED = nn.Embedding(512, D)
IMAGE, SOFT = torch.randn(2, 3, D), torch.randn(2, 4, D)


def ids(text):
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def words(text):
    """Embeddings of a text (n, D)."""
    return EMBED(torch.tensor(ids(text), dtype=torch.long))


def bos():
    return EMBED(torch.tensor([TOKENIZER.bos_token_id]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "{image} {words}",
            r"enc\.query='\{image\} \{words\}' has the unknown hole \{words\}; holes are \{image\}, \{vision\}, \{soft\}, \{caption\}",
        ),
        ("{}{image}", r"unknown hole \{\}"),
        ("no holes", r"must have the hole \{image\} or \{vision\}"),
        ("{soft}{caption}", r"must have the hole \{image\} or \{vision\}"),
        ("{image}{image}", "no hole twice"),
        ("{image}{caption}{caption}", "no hole twice"),
    ],
)
def test_wrong_holes_are_refused(text, message):
    with pytest.raises(UserError, match=message):
        Template(text, "enc.query")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("{image}{soft} Edit: {caption}:", lambda i: [IMAGE[i], SOFT[i], words(" Edit:"), words(f" {CAPTIONS[i]}"), words(":")]),
        ("{image} Edit: {soft}{caption}", lambda i: [IMAGE[i], words(" Edit: "), SOFT[i], words(CAPTIONS[i])]),
        ("Edit:{caption} {soft} a {image}", lambda i: [words("Edit:"), words(CAPTIONS[i]), words(" "), SOFT[i], words(" a "), IMAGE[i]]),
        (" {caption}{image}", lambda i: [words(f" {CAPTIONS[i]}"), IMAGE[i]]),
        ("{image}", lambda i: [IMAGE[i]]),
    ],
)
def test_tokens_lie_in_the_order_of_the_text(text, parts):
    template = Template(text, "key")
    embeds, mask, _ = template.fill(EMBED, TOKENIZER, IMAGE, SOFT, CAPTIONS if template.has_caption else None)
    for i in range(2):
        expected = torch.cat([bos(), *parts(i)])
        assert mask[i].tolist() == [1] * len(expected) + [0] * (embeds.shape[1] - len(expected))
        torch.testing.assert_close(embeds[i, : len(expected)], expected, rtol=0, atol=0)
    assert embeds.shape[1] == mask.sum(1).max()


CAPTIONS = ["but red", "as a circle in blue, larger"]


def test_a_space_before_the_caption_belongs_to_its_first_word():
    assert len(ids("red")) == len(ids(" red")) == 1
    assert ids("red") != ids(" red")
    joined, _, _ = Template("{image} Edit: {caption}", "key").fill(EMBED, TOKENIZER, IMAGE[:1], SOFT[:1], ["red"])
    torch.testing.assert_close(joined[0, -1], words(" red")[0], rtol=0, atol=0)
    torch.testing.assert_close(joined[0, -2], words(":")[0], rtol=0, atol=0)


def test_the_longest_row_has_no_padding_and_captions_do_not_mix():
    template = Template("{image}{caption}", "key")
    both, mask, _ = template.fill(EMBED, TOKENIZER, IMAGE, SOFT, CAPTIONS)
    alone, _, _ = template.fill(EMBED, TOKENIZER, IMAGE[:1], SOFT[:1], CAPTIONS[:1])
    assert mask[1].all()
    assert not mask[0].all()
    torch.testing.assert_close(both[0, : alone.shape[1]], alone[0], rtol=0, atol=0)


def test_a_soft_prompt_of_length_0_leaves_no_trace():
    with_hole, without = Template("{image}{soft} Edit", "key"), Template("{image} Edit", "key")
    a = with_hole.fill(EMBED, TOKENIZER, IMAGE, SOFT[:, :0], None)
    b = without.fill(EMBED, TOKENIZER, IMAGE, SOFT[:, :0], None)
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])


def test_a_tokenizer_without_bos_starts_with_the_text():
    embeds, _, _ = Template("a {image}", "key").fill(EMBED, tiny_tokenizer(bos=False), IMAGE, SOFT, None)
    assert embeds.shape[1] == len(ids("a ")) + IMAGE.shape[1]


def test_every_row_stands_between_the_given_ends():
    embeds, mask, _ = Template("{image}{caption}", "key").fill(EMBED, TOKENIZER, IMAGE, SOFT, CAPTIONS, ends=([7, 8], [9]))
    for i in range(2):
        expected = torch.cat([EMBED(torch.tensor([7, 8])), IMAGE[i], words(CAPTIONS[i]), EMBED(torch.tensor([9]))])
        torch.testing.assert_close(embeds[i, : mask[i].sum()], expected, rtol=0, atol=0)


def test_gradients_reach_image_and_soft_tokens():
    image, soft = IMAGE.clone().requires_grad_(), SOFT.clone().requires_grad_()
    embeds, _, _ = Template("{soft} Edit {image}", "key").fill(EMBED, TOKENIZER, image, soft, None)
    weight = torch.randn_like(embeds)
    (embeds * weight).sum().backward()
    text = len(ids(" Edit "))
    torch.testing.assert_close(soft.grad, weight[:, 1:5])
    torch.testing.assert_close(image.grad, weight[:, 5 + text :])
