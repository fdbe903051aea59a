"""Pretrained checkpoints in Hugging Face's layout, from a folder or the hub: found, identified, read without running code of theirs."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import SafetensorError

from cir_lightning.backbones.skeleton import CountingTokenizer, on_meta
from data_modules.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

Quantisation = Literal["none", "nf4", "int8"]
_ENDS = 1 << 16  # bytes at each end of a file of weights that identify it


class Checkpoint:
    """A model's files.

    Args:
        name: id on the Hugging Face hub, or a local folder.
        revision: commit, tag or branch on the hub; None for its main branch.
        dtype: of the weights in memory.
        quantisation: of linear layers by bitsandbytes.
    """

    def __init__(
        self,
        name: str,
        revision: str | None = None,
        *,
        dtype: Literal["bfloat16", "float32"] = "bfloat16",
        quantisation: Quantisation = "none",
    ) -> None:
        self.name, self.revision, self.dtype, self.quantisation = name, revision, dtype, quantisation
        self._config: PreTrainedConfig | None = None

    def config(self) -> PreTrainedConfig:
        """Its configuration.

        Raises:
            UserError: there is no such checkpoint, it cannot be reached, or it asks for code of its own.
        """
        from transformers import AutoConfig

        if self._config is None:
            self._config = self._read(AutoConfig, "config.json")
        return self._config

    def as_family(self, model_type: str, fields: Sequence[str]) -> PreTrainedConfig:
        """Read the checkpoint as one of another family, which has these fields in common; the new configuration."""
        from transformers import AutoConfig

        config = self.config()
        self._config = AutoConfig.for_model(model_type, **{name: getattr(config, name) for name in fields if hasattr(config, name)})
        return self._config

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer; on torch's device ``meta`` one that only counts, if there is none.

        Raises:
            UserError: there is none.
        """
        from transformers import AutoTokenizer

        try:
            tokenizer: PreTrainedTokenizerBase = self._read(AutoTokenizer, "a tokenizer")
        except UserError:
            if not on_meta():
                raise
            return CountingTokenizer()  # type: ignore[return-value]
        if tokenizer("a")["input_ids"]:
            return tokenizer
        if on_meta():  # no words at all are what some families' classes make of missing files
            return CountingTokenizer()  # type: ignore[return-value]
        raise UserError(f"cannot read a tokenizer of {self.name!r}: it knows no words, so files are missing; get them again")

    def image_processor(self) -> Any:
        """Its image processor on Pillow, whose pixels do not depend on whether torchvision is installed.

        Raises:
            UserError: there is none.
        """
        from transformers import AutoImageProcessor

        return self._read(AutoImageProcessor, "preprocessor_config.json", backend="pil")

    def skeleton(self, reader: str = "AutoModel") -> PreTrainedModel:
        """The model without weights, on the meta device."""
        import transformers

        with torch.device("meta"):
            model: PreTrainedModel = getattr(transformers, reader).from_config(self.config())
        return model

    def load(self, keep: Sequence[str] = (), reader: str = "AutoModel") -> PreTrainedModel:
        """The model in evaluation mode, on torch's default device; on ``meta`` without reading weights.

        Args:
            keep: names of parts that are not quantised.
            reader: the class of transformers that knows the model's form; the default reads it without its head.

        Raises:
            UserError: weights are missing or damaged, or bitsandbytes is needed and not installed.
        """
        import transformers

        if on_meta():
            skeleton: PreTrainedModel = self.skeleton(reader).to(getattr(torch, self.dtype)).eval()
            return skeleton
        options: dict[str, Any] = {"config": self.config(), "dtype": getattr(torch, self.dtype), "output_loading_info": True}
        options |= {"device_map": {"": torch.get_default_device()}, "quantization_config": self._quantised(keep)}
        model, found = self._read(getattr(transformers, reader), "weights", **options)
        if missing := sorted(found["missing_keys"]):
            raise UserError(f"{self.name} lacks {len(missing)} tensors of its model, the first of them {missing[0]}; get its files again")
        if wrong := sorted(found["mismatched_keys"]):
            raise UserError(f"{self.name} has {len(wrong)} tensors of another shape, the first of them {wrong[0]}; get its files again")
        loaded: PreTrainedModel = model.eval()
        return loaded

    def commit(self) -> str | None:
        """The commit on the hub that it is read from; None of a local folder.

        Raises:
            UserError: as :meth:`config`, which fetches it.
        """
        from huggingface_hub import try_to_load_from_cache

        self.config()
        found = None if Path(self.name).is_dir() else try_to_load_from_cache(self.name, "config.json", revision=self.revision or "main")
        return Path(found).parent.name if isinstance(found, str) else None

    def key(self) -> str:
        """What identifies its weights: the commit on the hub; of a folder, its name and a hash of its files' sizes and ends."""
        name = self.name.strip("/").split("/")[-1]
        precision = "-".join(filter(None, (self.dtype, "" if self.quantisation == "none" else self.quantisation)))
        if not Path(self.name).is_dir():
            return f"{name}-{self.commit() or self.revision}-{precision}"
        digest = hashlib.sha256()
        for file in sorted(path for path in Path(self.name).iterdir() if path.suffix in {".json", ".safetensors", ".bin"}):
            with file.open("rb") as content:
                digest.update(f"{file.name} {(size := file.stat().st_size)} ".encode() + content.read(_ENDS))
                content.seek(max(0, size - _ENDS))
                digest.update(content.read())
        return f"{name}-{digest.hexdigest()[:16]}-{precision}"

    def _quantised(self, keep: Sequence[str]) -> Any:
        if self.quantisation == "none":
            return None
        try:
            import bitsandbytes  # noqa: F401
        except ImportError as error:
            raise UserError(
                f"backbone.quantisation={self.quantisation!r} needs the package bitsandbytes; pip install bitsandbytes"
            ) from error
        from transformers import BitsAndBytesConfig

        options: dict[str, Any] = {"llm_int8_skip_modules": list(keep)}
        if self.quantisation == "int8":
            return BitsAndBytesConfig(load_in_8bit=True, **options)  # type: ignore[no-untyped-call]
        compute = getattr(torch, self.dtype)
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute, **options)  # type: ignore[no-untyped-call]

    def _read(self, reader: Any, what: str, **options: Any) -> Any:
        try:
            return reader.from_pretrained(self.name, revision=self.revision or "main", trust_remote_code=False, **options)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise UserError(self._reason(error, what)) from error

    def _reason(self, error: Exception, what: str) -> str:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "trust_remote_code" in str(error):
            return (
                f"{self.name} asks for code of its own, which is never run; use a model of transformers' own classes, or convert the "
                "original Qwen-VL-Chat with cir convert qwen-vl-chat"
            )
        where = "this folder" if Path(self.name).is_dir() else "it is neither a folder nor within reach on the hub"
        remedy = "" if Path(self.name).is_dir() else "; fetch it beforehand with hf download, then HF_HUB_OFFLINE=1 works, or give a folder"
        return f"cannot read {what} of {self.name!r} ({where}; {first[:200]}){remedy}"
