"""Every family against its own full forward pass, at tiny size, from files as they lie on the hub."""

import pytest
import torch
from fakes.lvlms import IMAGE, SIDE, write_lvlm
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

from cir_lightning.backbones.hf import FAMILIES, HFLVLM

PADDING = 2


@pytest.fixture(scope="module", params=FAMILIES)
def lvlm(request, tmp_path_factory):
    """A built backbone, the folder that it was read from and its family's name."""
    family = request.param
    folder = write_lvlm(family, tmp_path_factory.mktemp(family))
    side = 2 * SIDE if family == "llava_next" else SIDE
    lvlm = HFLVLM(str(folder), dtype="float32", image_size=side)
    lvlm.build()
    return lvlm.eval(), folder, family


def pixels(lvlm, count=2):
    side = lvlm.tower.image_size
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def own_forward(folder, family, images, rows):
    """The family's base model on token ids with placeholders, and its own pixels."""
    base = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    options = {"do_image_splitting": False} if family in {"smolvlm", "idefics3"} else {}
    nested = [[picture] for picture in pictures] if options else pictures
    given = AutoImageProcessor.from_pretrained(folder, backend="pil")(images=nested, return_tensors="pt", **options)
    given = {name: value for name, value in given.items() if name not in {"num_patches", "num_crops", "rows", "cols"}}
    longest = max(map(len, rows))
    ids = torch.tensor([row + [PADDING] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    if "qwen" in family:
        given["mm_token_type_ids"] = (ids == IMAGE).int()
    if family in {"gemma3", "paligemma"}:
        given["token_type_ids"] = (ids == IMAGE).long() if family == "gemma3" else torch.zeros_like(ids)
    with torch.no_grad():
        return ids, mask, base(input_ids=ids, attention_mask=mask, **given).last_hidden_state


def test_a_query_is_read_as_by_the_familys_own_forward(lvlm):
    lvlm, folder, family = lvlm
    images = pixels(lvlm)
    vision = lvlm.vision.look(images)
    tokens = vision.shape[1]
    rows = [[5, 6, *[IMAGE] * tokens, 7, 8, 9, 10], [11, *[IMAGE] * tokens, 12]]
    ids, mask, expected = own_forward(folder, family, images, rows)
    embeds = lvlm.llm.get_input_embeddings()(ids)
    with torch.no_grad():
        found = lvlm.read(embeds, mask, ids == IMAGE, vision)
    assert (expected[0] - expected[1])[:2].abs().max() > 0.1
    torch.testing.assert_close(found * mask[..., None], expected * mask[..., None], atol=1e-5, rtol=0)
