"""Any vision tower and any decoder-only LLM of transformers, which have never seen each other: the Connector introduces them.

Shapes: B batch, S picture side in pixels, N patches, Dv patch feature width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from cir_lightning.backbones.base import Backbone, VisionTower
from cir_lightning.backbones.checkpoints import Checkpoint, Quantisation
from cir_lightning.backbones.lora import adapt, check_over
from cir_lightning.backbones.mini import quiet_transformers
from cir_lightning.backbones.skeleton import on_meta
from data_modules.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from cir_lightning.backbones.lora import LoRA


class PatchTower(VisionTower):
    """The last hidden states of a vision transformer's patches, without the tokens before them (class token, registers).

    Args:
        model: the vision model.
        processor: its image processor.
        image_size: side S of the input pictures, pixels.
        key: of the checkpoint.

    Raises:
        UserError: the model does not give one vector per patch.
    """

    def __init__(self, model: nn.Module, processor: Any, *, image_size: int, key: str) -> None:
        super().__init__()
        self.model, self.processor, self.image_size = model.requires_grad_(requires_grad=False).eval(), processor, image_size
        self.key = f"{key}-{image_size}px-patches"
        self.patches = (image_size // int(getattr(model.config, "patch_size", 0) or image_size)) ** 2
        if on_meta():
            self.width = int(model.config.hidden_size)  # type: ignore[union-attr,arg-type]
            return
        try:
            hidden = getattr(self._run(torch.zeros(1, 3, image_size, image_size, dtype=torch.uint8)), "last_hidden_state", None)
        except Exception as error:  # other kinds of models raise almost anything
            reason = str(error).partition("\n")[0][:150]
            raise UserError(
                f"vision tower {key!r} cannot encode a picture of {image_size} x {image_size} pixels ({reason}); set the image_size that "
                "it was trained on, or use a vision transformer, such as SigLIP or DINOv2"
            ) from error
        if self.patches < 2 or hidden is None or hidden.ndim != 3 or hidden.shape[1] < self.patches:
            found = "nothing" if hidden is None else f"a last hidden state of shape {tuple(hidden.shape)}"
            raise UserError(f"vision tower {key!r} gives {found}, no vector per patch; use a vision transformer, such as SigLIP or DINOv2")
        self.width = hidden.shape[2]

    def train(self, mode: bool = True) -> PatchTower:  # noqa: ARG002, FBT001, FBT002 - torch's signature; frozen
        """Stay in evaluation mode."""
        return super().train(mode=False)

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """See :class:`~cir_lightning.backbones.base.VisionTower`."""
        hidden: Tensor = self._run(pixels).last_hidden_state
        return self.rounded(hidden[:, -self.patches :])

    @torch.no_grad()
    def _run(self, pixels: Tensor) -> Any:
        like = next(self.model.parameters())
        images = [picture.permute(1, 2, 0).cpu().numpy() for picture in pixels]
        size = {"height": self.image_size, "width": self.image_size}
        given = self.processor(images=images, return_tensors="pt", size=size, do_center_crop=False)["pixel_values"]
        return self.model(pixel_values=given.to(like.device, like.dtype))


class ComposedLVLM(Backbone):
    """A vision tower and an LLM by their ids.

    Real sizes are unrun: it is tested with random weights of the real architectures at tiny size.

    Args:
        vision: vision transformer, an id on the Hugging Face hub or a local folder: ``google/siglip2-so400m-patch14-384``. Of a model with
            a text part, the vision part is used.
        llm: decoder-only language model, likewise: ``Qwen/Qwen3-0.6B``.
        vision_revision: commit, tag or branch on the hub.
        llm_revision: commit, tag or branch on the hub.
        image_size: side S of the square pictures that the tower sees, pixels; None for the size that it was trained on.
        dtype: of the frozen weights; adapters and new modules are float32.
        quantisation: of the frozen LLM by bitsandbytes: ``nf4`` (4 bits), ``int8``, or ``none``.
        lora: the adapters; None for a frozen LLM.
        gradient_checkpointing: recompute activations in the backward pass: less memory, more time.
    """

    def __init__(
        self,
        vision: str,
        llm: str,
        *,
        vision_revision: str | None = None,
        llm_revision: str | None = None,
        image_size: int | None = None,
        dtype: Literal["bfloat16", "float32"] = "bfloat16",
        quantisation: Quantisation = "none",
        lora: LoRA | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.eyes = Checkpoint(vision, vision_revision, dtype=dtype)
        self.words = Checkpoint(llm, llm_revision, dtype=dtype, quantisation=quantisation)
        check_over(lora, quantisation)
        self.quantised = quantisation != "none"
        self.image_size, self.lora, self.gradient_checkpointing = image_size, lora, gradient_checkpointing

    def base_models(self) -> dict[str, Checkpoint]:
        """See :class:`~cir_lightning.backbones.base.Backbone`."""
        return {"vision_revision": self.eyes, "llm_revision": self.words}

    def save_merged(self, folder: Path) -> dict[str, str | None]:
        """See :class:`~cir_lightning.backbones.base.Backbone`; the vision tower is still read by its id."""
        self.llm.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        return {"llm": str(folder), "llm_revision": None}

    def build(self) -> None:
        """See :class:`~cir_lightning.backbones.base.Backbone`."""
        quiet_transformers()
        if self.words.config().is_encoder_decoder or not hasattr(self.words.config(), "hidden_size"):
            raise UserError(f"backbone.llm={self.words.name!r} is no decoder-only language model; use one, such as Qwen3")
        model: Any = self.eyes.load()
        model = getattr(model, "vision_model", model)
        size = self.image_size or int(getattr(model.config, "image_size", 224))
        processor = None if on_meta() else self.eyes.image_processor()
        self.tower = PatchTower(model, processor, image_size=size, key=f"{self.eyes.key()}-last")
        self.llm = self.words.load()
        self.tokenizer = self.words.tokenizer()
        adapt(self.llm, self.lora, gradient_checkpointing=self.gradient_checkpointing)
