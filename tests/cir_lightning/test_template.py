"""Templates against token ids put together by hand."""

import pytest
import torch
from fakes.tiny import tiny_tokenizer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

from cir_lightning.template import TaskPrompt, Template
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
    embeds, mask, *_ = TaskPrompt(template, TOKENIZER).fill(EMBED, IMAGE, SOFT, CAPTIONS if template.has_caption else None)
    for i in range(2):
        expected = torch.cat([bos(), *parts(i)])
        assert mask[i].tolist() == [1] * len(expected) + [0] * (embeds.shape[1] - len(expected))
        torch.testing.assert_close(embeds[i, : len(expected)], expected, rtol=0, atol=0)
    assert embeds.shape[1] == mask.sum(1).max()


CAPTIONS = ["but red", "as a circle in blue, larger"]


def test_a_space_before_the_caption_belongs_to_its_first_word():
    assert len(ids("red")) == len(ids(" red")) == 1
    assert ids("red") != ids(" red")
    joined, *_ = TaskPrompt(Template("{image} Edit: {caption}", "key"), TOKENIZER).fill(EMBED, IMAGE[:1], SOFT[:1], ["red"])
    torch.testing.assert_close(joined[0, -1], words(" red")[0], rtol=0, atol=0)
    torch.testing.assert_close(joined[0, -2], words(":")[0], rtol=0, atol=0)


def test_the_longest_row_has_no_padding_and_captions_do_not_mix():
    template = Template("{image}{caption}", "key")
    both, mask, *_ = TaskPrompt(template, TOKENIZER).fill(EMBED, IMAGE, SOFT, CAPTIONS)
    alone, *_ = TaskPrompt(template, TOKENIZER).fill(EMBED, IMAGE[:1], SOFT[:1], CAPTIONS[:1])
    assert mask[1].all()
    assert not mask[0].all()
    torch.testing.assert_close(both[0, : alone.shape[1]], alone[0], rtol=0, atol=0)


def test_a_soft_prompt_of_length_0_leaves_no_trace():
    with_hole, without = Template("{image}{soft} Edit", "key"), Template("{image} Edit", "key")
    a = TaskPrompt(with_hole, TOKENIZER).fill(EMBED, IMAGE, SOFT[:, :0], None)
    b = TaskPrompt(without, TOKENIZER).fill(EMBED, IMAGE, SOFT[:, :0], None)
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])


def test_a_tokenizer_without_bos_starts_with_the_text():
    embeds, *_ = TaskPrompt(Template("a {image}", "key"), tiny_tokenizer(bos=False)).fill(EMBED, IMAGE, SOFT, None)
    assert embeds.shape[1] == len(ids("a ")) + IMAGE.shape[1]


def test_every_row_stands_between_the_given_ends():
    embeds, mask, *_ = TaskPrompt(Template("{image}{caption}", "key"), TOKENIZER, ([7, 8], [9])).fill(EMBED, IMAGE, SOFT, CAPTIONS)
    for i in range(2):
        expected = torch.cat([EMBED(torch.tensor([7, 8])), IMAGE[i], words(CAPTIONS[i]), EMBED(torch.tensor([9]))])
        torch.testing.assert_close(embeds[i, : mask[i].sum()], expected, rtol=0, atol=0)


def test_gradients_reach_image_and_soft_tokens():
    image, soft = IMAGE.clone().requires_grad_(), SOFT.clone().requires_grad_()
    embeds, *_ = TaskPrompt(Template("{soft} Edit {image}", "key"), TOKENIZER).fill(EMBED, image, soft, None)
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
    prompt = TaskPrompt(Template("{image} Edit {vision}:", "key"), TOKENIZER).fill(EMBED, IMAGE, SOFT, None, 3)
    start = 1 + IMAGE.shape[1] + len(ids(" Edit "))
    assert prompt.seen.tolist() == [[start <= at < start + 3 for at in range(prompt.embeds.shape[1])]] * 2
    assert prompt.pooled.all()


def test_special_tokens_in_a_caption_are_text():
    tokenizer = chatty(STRING)
    image = tokenizer.convert_tokens_to_ids("<image>")
    assert tokenizer("<image>", add_special_tokens=False)["input_ids"] == [image]
    embed = torch.nn.Embedding(len(tokenizer), 8)
    prompt = TaskPrompt(Template("{image}{caption}", "key"), tokenizer).fill(
        embed, torch.randn(1, 2, 8), torch.randn(1, 0, 8), ["a <image> </u>"]
    )
    assert not (prompt.embeds == embed.weight[image]).all(-1).any()
    assert prompt.mask.shape[1] > 1 + 2 + 4


@pytest.mark.parametrize(("chat", "pooled"), [(PARTS, "all"), (PARTS, "after_image"), (STRING, "answer"), (STRING, "after_image")])
def test_a_chat_wraps_the_prompt_and_names_the_pooled_positions(chat, pooled):
    tokenizer = chatty(chat + ANSWER)
    embed = torch.nn.Embedding(len(tokenizer), 8)
    template = Template("{image} Edit: {caption}!", "key", pooled).in_chat(tokenizer)
    image = torch.randn(2, 3, 8)
    prompt = TaskPrompt(template, tokenizer).fill(embed, image, torch.zeros(2, 0, 8), ["but red", "red"])
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


# ---- tokenised in parts as it would be as a whole ----------------------------------------------------------------------------------


def sentencepiece(scheme):
    """A tokenizer like Llama's: a word begins with the mark of a space, which the first one gets, too."""
    words = ["▁", "▁Edit", ":", "▁red", "red", "!", "▁Picture", "Edit", "USER", "▁USER", "<0x0A>", "a", "▁a", "▁▁"]
    merges = [(left, right) for word in words for left, right in _splits(word)]
    letters = sorted({letter for word in words for letter in word} | set("<0x>AUSERbut "))
    pieces = [*dict.fromkeys(["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *(a + b for a, b in merges)])]
    tokenizer = Tokenizer(models.BPE({piece: at for at, piece in enumerate(pieces)}, merges, unk_token="<unk>", byte_fallback=True))
    if scheme == "legacy":  # of LLaVA-1.5's Vicuna: after every special token, too
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    made.add_special_tokens({"additional_special_tokens": ["<image>"]})
    return made


def _splits(word):
    return [(word[:at], word[at]) for at in range(1, len(word))] if not word.startswith("<") else []


@pytest.mark.parametrize("scheme", ["legacy", "first", "always", "never", "byte-level"])
@pytest.mark.parametrize(
    "text",
    [
        "USER: {vision} Edit: {caption}! a",
        "{vision}Edit:{caption}!",
        "Edit: {caption} {vision}: a",
        "{vision}{caption}!",
        "{vision} {caption}: a",
        "{caption}{vision} a",
        "{caption} {vision}: a",
    ],
)
def test_the_tokens_are_those_of_the_whole_text_in_the_familys_own_way(text, scheme):
    tokenizer = chatty(None) if scheme == "byte-level" else sentencepiece(scheme)
    tokenizer.add_special_tokens({"eos_token": "</s>"})
    own = tokenizer(text.format(vision="<image>", caption="red red"), add_special_tokens=False)["input_ids"]
    embed = nn.Embedding(len(tokenizer), 4)
    nothing = torch.zeros(1, 0, 4)
    prompt = TaskPrompt(Template(text, "key"), tokenizer).fill(embed, nothing, nothing, ["red red"], 1)
    image = tokenizer.convert_tokens_to_ids("<image>")
    filled = torch.where(prompt.seen[0, :, None], embed.weight[image], prompt.embeds[0])
    torch.testing.assert_close(filled, embed(torch.tensor([tokenizer.bos_token_id, *own])), rtol=0, atol=0)


# ---- chats as the families have them, in their structure ---------------------------------------------------------------------------

EACH = "{% for m in messages %}"
PART = "{% for p in m['content'] %}{% if p['type'] == 'text' %}{{ p['text'] }}{% endif %}{% endfor %}"
CHATML = "{{ '<|im_start|>' + m['role'] + '\\n' }}{% if m['content'] is string %}{{ m['content'] }}{% else %}" + PART + "{% endif %}"
CHATS = {  # family: template, what stands before the prompt, after it, and what begins the answer
    "llava": (
        EACH
        + "{{ m['role'] | upper + ': ' }}"
        + "{% for p in m['content'] | selectattr('type', 'equalto', 'text') %}{{ p['text'] + ' ' }}{% endfor %}"
        + "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}",
        ("USER: ", " ", "ASSISTANT:"),
    ),
    "llava_next on Mistral": (EACH + "{{ '[INST] ' }}" + PART + "{{ ' [/INST]' }}{% endfor %}", ("[INST] ", " [/INST]", "")),
    "qwen": (
        EACH
        + "{% if loop.first and m['role'] != 'system' %}{{ '<|im_start|>system\\nYou help.<|im_end|>\\n' }}{% endif %}"
        + CHATML
        + "{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
        ("<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\n", "<|im_end|>\n", "<|im_start|>assistant\n"),
    ),
    "smolvlm": (
        "<|im_start|>"
        + EACH
        + "{{ m['role'] | capitalize }}{% if m['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
        + PART
        + "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}",
        ("<|im_start|>User: ", "<end_of_utterance>\n", "Assistant:"),
    ),
    "gemma3": (
        "{{ bos_token }}"
        + EACH
        + "{{ '<start_of_turn>' + m['role'] + '\\n' }}{% if m['content'] is string %}{{ m['content'] | trim }}{% else %}"
        + PART.replace("p['text']", "p['text'] | trim")
        + "{% endif %}{{ '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}",
        ("<start_of_turn>user\n", "<end_of_turn>\n", "<start_of_turn>model\n"),
    ),
}


@pytest.mark.parametrize("family", CHATS)
def test_every_familys_kind_of_chat(family):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template, (before, after, answer) = CHATS[family]
    chat = Template("{vision} Edit: {caption}!", "key").in_chat(tokenizer).around("\n\n<", ">\n\n")
    assert chat.text + chat.answer == f"{before}\n\n<{{vision}}>\n\n Edit: {{caption}}!{after}{answer}"
    assert chat.answer.strip() == answer.strip()
    assert chat.around("\n\n<", ">\n\n").text == chat.text


@pytest.mark.parametrize("scheme", ["legacy", "first", "byte-level"])
@pytest.mark.parametrize("family", CHATS)
@pytest.mark.parametrize("text", ["{vision} Edit: {caption}!", "Edit: {vision} {caption}"])
def test_the_tokens_of_a_chat_are_those_of_the_whole_text(text, family, scheme):
    """Also where the answer begins, as LLaVA-1.5's, which a space parts from the question."""
    tokenizer = chatty(None) if scheme == "byte-level" else sentencepiece(scheme)
    tokenizer.add_special_tokens({"eos_token": "</s>", "additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<image>"]})
    tokenizer.chat_template, (before, after, answer) = CHATS[family]
    own = tokenizer(before + text.format(vision="<image>", caption="red") + after + answer, add_special_tokens=False)["input_ids"]
    embed, nothing = nn.Embedding(len(tokenizer), 4), torch.zeros(1, 0, 4)
    for pooled in ("all", "answer") if answer else ("all",):
        prompt = TaskPrompt(Template(text, "key", pooled).in_chat(tokenizer), tokenizer).fill(embed, nothing, nothing, ["red"], 1)
        image = embed.weight[tokenizer.convert_tokens_to_ids("<image>")]
        filled = torch.where(prompt.seen[0, :, None], image, prompt.embeds[0])
        torch.testing.assert_close(filled, embed(torch.tensor([tokenizer.bos_token_id, *own])), rtol=0, atol=0)


def test_only_an_answer_after_the_image():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template, _ = CHATS["llava"]
    chat = Template("Edit {vision}", "key").in_chat(tokenizer)
    assert (chat.text, chat.answer) == ("USER: Edit {vision}", " ASSISTANT:")
    after = Template(chat.text, "key", "after_image", chat.answer)
    nothing = torch.zeros(1, 0, D)
    pooled = TaskPrompt(after, tokenizer).fill(EMBED, nothing, nothing, None, 3).pooled
    assert pooled.sum() == len(ids(" ASSISTANT:"))


def test_an_answer_that_the_chat_does_not_begin():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template, _ = CHATS["llava_next on Mistral"]
    with pytest.raises(UserError, match=r"key: positions is 'answer', but the tokenizer's chat template does not begin one; set after"):
        Template("{vision} Edit", "key", "answer").in_chat(tokenizer)
