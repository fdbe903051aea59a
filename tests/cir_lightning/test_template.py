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
    embeds, mask, *_ = template.fill(EMBED, TOKENIZER, IMAGE, SOFT, CAPTIONS if template.has_caption else None)
    for i in range(2):
        expected = torch.cat([bos(), *parts(i)])
        assert mask[i].tolist() == [1] * len(expected) + [0] * (embeds.shape[1] - len(expected))
        torch.testing.assert_close(embeds[i, : len(expected)], expected, rtol=0, atol=0)
    assert embeds.shape[1] == mask.sum(1).max()


CAPTIONS = ["but red", "as a circle in blue, larger"]


def test_a_space_before_the_caption_belongs_to_its_first_word():
    assert len(ids("red")) == len(ids(" red")) == 1
    assert ids("red") != ids(" red")
    joined, *_ = Template("{image} Edit: {caption}", "key").fill(EMBED, TOKENIZER, IMAGE[:1], SOFT[:1], ["red"])
    torch.testing.assert_close(joined[0, -1], words(" red")[0], rtol=0, atol=0)
    torch.testing.assert_close(joined[0, -2], words(":")[0], rtol=0, atol=0)


def test_the_longest_row_has_no_padding_and_captions_do_not_mix():
    template = Template("{image}{caption}", "key")
    both, mask, *_ = template.fill(EMBED, TOKENIZER, IMAGE, SOFT, CAPTIONS)
    alone, *_ = template.fill(EMBED, TOKENIZER, IMAGE[:1], SOFT[:1], CAPTIONS[:1])
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
    embeds, *_ = Template("a {image}", "key").fill(EMBED, tiny_tokenizer(bos=False), IMAGE, SOFT, None)
    assert embeds.shape[1] == len(ids("a ")) + IMAGE.shape[1]


def test_gradients_reach_image_and_soft_tokens():
    image, soft = IMAGE.clone().requires_grad_(), SOFT.clone().requires_grad_()
    embeds, *_ = Template("{soft} Edit {image}", "key").fill(EMBED, TOKENIZER, image, soft, None)
    weight = torch.randn_like(embeds)
    (embeds * weight).sum().backward()
    text = len(ids(" Edit "))
    torch.testing.assert_close(soft.grad, weight[:, 1:5])
    torch.testing.assert_close(image.grad, weight[:, 5 + text :])


# ---- visual tokens, chats, pooled positions --------------------------------------------------------------------------------------

PARTS = "{% for m in messages %}<u>{% for p in m['content'] %}{{ p['text'] }}{% endfor %}</u>{% endfor %}"
STRING = "{{ bos_token }}{% for m in messages %}<u>{{ m['content'] }}</u>{% endfor %}"
ANSWER = "{% if add_generation_prompt %}<a>{% endif %}"


def chatty(template):
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<u>", "</u>", "<a>", "<image>"]})
    tokenizer.chat_template = template
    return tokenizer


def test_visual_tokens_have_their_places():
    prompt = Template("{image} Edit {vision}:", "key").fill(EMBED, TOKENIZER, IMAGE, SOFT, None, 3)
    start = 1 + IMAGE.shape[1] + len(ids(" Edit "))
    assert prompt.seen.tolist() == [[start <= at < start + 3 for at in range(prompt.embeds.shape[1])]] * 2
    assert prompt.pooled.all()


def test_special_tokens_in_a_caption_are_text():
    tokenizer = chatty(STRING)
    image = tokenizer.convert_tokens_to_ids("<image>")
    assert tokenizer("<image>", add_special_tokens=False)["input_ids"] == [image]
    embed = torch.nn.Embedding(len(tokenizer), 8)
    prompt = Template("{image}{caption}", "key").fill(embed, tokenizer, torch.randn(1, 2, 8), torch.randn(1, 0, 8), ["a <image> </u>"])
    assert not (prompt.embeds == embed.weight[image]).all(-1).any()
    assert prompt.mask.shape[1] > 1 + 2 + 4


@pytest.mark.parametrize(("chat", "pooled"), [(PARTS, "all"), (PARTS, "after_image"), (STRING, "answer"), (STRING, "after_image")])
def test_a_chat_wraps_the_prompt_and_names_the_pooled_positions(chat, pooled):
    tokenizer = chatty(chat + ANSWER)
    embed = torch.nn.Embedding(len(tokenizer), 8)
    template = Template("{image} Edit: {caption}!", "key", pooled).in_chat(tokenizer)
    image = torch.randn(2, 3, 8)
    prompt = template.fill(embed, tokenizer, image, torch.zeros(2, 0, 8), ["but red", "red"])
    for row, caption in enumerate(["but red", "red"]):
        before = tokenizer("<s><u>", add_special_tokens=False)["input_ids"]
        asked = tokenizer(" Edit:", add_special_tokens=False)["input_ids"] + tokenizer(f" {caption}", add_special_tokens=False)["input_ids"]
        after = [*asked, *tokenizer("!</u>", add_special_tokens=False)["input_ids"]]
        answer = [tokenizer.convert_tokens_to_ids("<a>")]
        expected = torch.cat([embed(torch.tensor(before)), image[row], embed(torch.tensor(after + answer))])
        length = len(expected)
        torch.testing.assert_close(prompt.embeds[row, :length], expected, rtol=0, atol=0)
        assert prompt.mask[row].sum() == length
        first = {"all": 0, "after_image": len(before) + 3, "answer": length - 1}[pooled]
        assert prompt.pooled[row].nonzero().flatten().tolist() == list(range(first, length))


def test_chats_that_cannot_be():
    with pytest.raises(UserError, match=r"key: chat is on, but the tokenizer has no chat template; set model\.encoder\."):
        Template("{image}", "key").in_chat(TOKENIZER)
    for chat in ("{{ raise_exception('no') }}", "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}", "fixed"):
        with pytest.raises(UserError, match=r"key='\{image\} a' does not come out of the tokenizer's chat template as it is; set chat to"):
            Template("{image} a", "key").in_chat(chatty(chat))


def test_nothing_after_the_image():
    with pytest.raises(UserError, match=r"key='Edit \{image\}' has nothing after its image, and positions is 'after_image'"):
        Template("Edit {image}", "key", "after_image")
