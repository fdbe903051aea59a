"""Pretrained checkpoints in Hugging Face's layout, from a folder or the hub: found, identified, read without running code of theirs."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from cir_lightning.backbones.skeleton import CountingTokenizer, on_meta
from data_modules.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

Quantisation = Literal["none", "nf4", "int8"]
_BLOCK, _ROWS = 64, 32  # of bitsandbytes' 4 bits: weights of a row that share a scale, rows that are packed together on CPUs
_SMALL = 1 << 26  # bytes of a file that is hashed as a whole


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
        self.name = str(Path(name).expanduser()) if name.startswith("~") else name
        self.revision, self.dtype, self.quantisation = revision, dtype, quantisation
        self._key: str | None = None
        self._kind = ""  # its own, where it is read as one of another family
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
        self._kind = config.model_type
        self._config = AutoConfig.for_model(model_type, **{name: getattr(config, name) for name in fields if hasattr(config, name)})
        return self._config

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer; on torch's device ``meta`` one that only counts, if there is none.

        Raises:
            UserError: there is none.
        """
        from transformers import AutoTokenizer

        try:
            tokenizer: PreTrainedTokenizerBase = self._knowing(self._read(AutoTokenizer, "a tokenizer"))
        except UserError:
            if on_meta():  # where numbers of tokens do
                return CountingTokenizer()  # type: ignore[return-value]
            raise
        tokenizer.chat_template = tokenizer.chat_template or self._chat_template()
        return tokenizer

    def _knowing(self, tokenizer: Any) -> Any:
        """The tokenizer, unless it is the empty one that some families' classes make of missing files."""
        if not tokenizer("picture", add_special_tokens=False)["input_ids"]:
            raise UserError(f"cannot read a tokenizer of {self.name!r}: it knows no words, so files are missing; get them again")
        return tokenizer

    def _chat_template(self) -> str | None:
        """Of ``chat_template.json``, where multimodal models have it."""
        file = self._file("chat_template.json")
        return json.loads(Path(file).read_text(encoding="utf-8"))["chat_template"] if file else None

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
            UserError: weights are missing or damaged, bitsandbytes is needed and not installed, or layers are no multiples of its
                blocks.
        """
        import transformers

        if on_meta():
            skeleton: PreTrainedModel = self.skeleton(reader).to(getattr(torch, self.dtype)).eval()
            return skeleton
        if self.quantisation == "nf4":
            self._check_blocks(keep, reader)
        options: dict[str, Any] = {"config": self.config(), "dtype": getattr(torch, self.dtype), "output_loading_info": True}
        options |= {"device_map": {"": torch.get_default_device()}, "quantization_config": self._quantised(keep)}
        model, found = self._read(getattr(transformers, reader), "weights", **options)
        if missing := sorted(found["missing_keys"]):
            raise UserError(f"{self.name} lacks {len(missing)} tensors of its model, the first of them {missing[0]}; get its files again")
        if wrong := sorted(found["mismatched_keys"]):
            raise UserError(f"{self.name} has {len(wrong)} tensors of another shape, the first of them {wrong[0]}; get its files again")
        loaded: PreTrainedModel = model.eval()
        return loaded

    def tensors(self, prefixes: Sequence[str]) -> dict[str, torch.Tensor]:
        """Some of its weights by name, on the CPU, in its own dtype; nothing else of its files is read.

        Args:
            prefixes: what their names begin with, after ``model.`` if there is that.

        Raises:
            UserError: it has no safetensors, or they are damaged.
        """
        from safetensors import SafetensorError, safe_open

        def wanted(name: str) -> bool:
            return name.removeprefix("model.").startswith(tuple(prefixes))

        found: dict[str, torch.Tensor] = {}
        for file in self._shards(wanted):
            if (path := self._file(file)) is None:
                there = "" if Path(self.name).is_dir() else f" within reach; fetch it beforehand with hf download {self.name}, or"
                raise UserError(f"{self.name!r} has no file {file}{there or ';'} get it as safetensors, or take a revision that has them")
            try:
                with safe_open(path, framework="pt") as content:
                    names = filter(wanted, content.keys())
                    found |= {name.removeprefix("model."): content.get_tensor(name) for name in names}
            except (OSError, SafetensorError) as error:
                raise UserError(f"cannot read {path} ({str(error)[:200]}); get its files again") from error
        return found

    def _shards(self, wanted: Callable[[str], bool]) -> list[str]:
        """The names of the files that hold the wanted tensors."""
        index = "model.safetensors.index.json"
        if (path := self._file(index)) is None:
            return ["model.safetensors"]
        try:
            places: dict[str, str] = json.loads(Path(path).read_text(encoding="utf-8"))["weight_map"]
            return sorted({file for name, file in places.items() if wanted(name)})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{self.name!r}: {index} is damaged ({error!r:.200}); get its files again") from error

    def _file(self, name: str) -> str | None:
        """Where one of its files lies, fetched from the hub if it must be; None if there is none."""
        from transformers.utils.hub import cached_file

        try:
            found: str | None = cached_file(self.name, name, revision=self.revision or "main", _raise_exceptions_for_missing_entries=False)
        except Exception as error:  # of the hub, the network and the disk
            raise UserError(self._reason(error, name)) from error
        return found

    def _check_blocks(self, keep: Sequence[str], reader: str) -> None:
        for name, part in self.skeleton(reader).named_modules():
            quantised = isinstance(part, torch.nn.Linear) and name.split(".")[0] not in keep and not name.endswith("lm_head")
            if quantised and (part.in_features % _BLOCK or part.out_features % _ROWS):
                raise UserError(
                    f"backbone.quantisation='nf4' packs {_ROWS} rows of {_BLOCK} numbers, and {name} of {self.name} has "
                    f"{part.out_features} rows of {part.in_features}; set int8 or none"
                )

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
        """What adapters are trained over: :meth:`unpacked_key` and the quantisation, if there is one.

        Raises:
            UserError: the commit on the hub is not known.
        """
        return "-".join([self.unpacked_key(), *([] if self.quantisation == "none" else [self.quantisation])])

    def unpacked_key(self) -> str:
        """What identifies its weights before bitsandbytes: id and commit on the hub, or of a folder a hash of its files; and the dtype.

        It is all that a vision tower depends on, which is never quantised.

        Of files of more than 64 MB, every megabyte's first 4 KB are hashed: what training or another conversion changes is everywhere.

        Raises:
            UserError: the commit on the hub is not known.
        """
        if self._key is None:
            self._key = f"{self._origin()}-{self.dtype}"
        return self._key

    def check_trained(self, key: str, name: str, remedy: str) -> None:
        """Refuse weights that are not those that a model was trained over.

        Another quantisation of the same weights is let through with a warning. Adapters trained over 4-bit weights are commonly used over
        bfloat16 ones (QLoRA, arXiv 2305.14314, merges them so), and a model trained in bfloat16 is packed to save memory: both work, but
        the base then differs from that of training by the rounding of the packed weights, so figures have to be measured again.

        Args:
            key: :meth:`key` at the time of training.
            name: of the trained model, for the message.
            remedy: what to do.

        Raises:
            UserError: the commit on the hub, the files of the folder, or the dtype are others.
        """
        if key == (found := self.key()):
            return
        packed = next((how for how in get_args(Quantisation) if key.endswith(f"-{how}")), "none")
        if key.removesuffix(f"-{packed}") != self.unpacked_key():
            raise UserError(f"{name}: was trained on the base model {key!r}, but {self.name!r} is here {found!r}; {remedy}")
        warnings.warn(
            f"{name}: trained over {self.name} with quantisation={packed!r} and now used with {self.quantisation!r}, whose weights are "
            "rounded in another way; measure it again (cir test) before comparing its figures",
            stacklevel=2,
        )

    def _origin(self) -> str:
        kind = self._kind or self.config().model_type
        if not Path(self.name).is_dir():
            if (commit := self.commit()) is None:
                raise UserError(f"{self.name}: its commit on the hub is not known; fetch it with hf download, or give its revision")
            return f"{kind}-{self.name.replace('/', '--')}-{commit}"
        digest = hashlib.sha256()
        for file in sorted(path for path in Path(self.name).iterdir() if path.suffix in {".json", ".safetensors", ".bin"}):
            size = file.stat().st_size
            digest.update(f"{file.name} {size} ".encode())
            with file.open("rb") as content:
                if size <= _SMALL:
                    digest.update(content.read())
                    continue
                for start in range(0, size, 1 << 20):
                    content.seek(start)
                    digest.update(content.read(1 << 12))
        return f"{kind}-{digest.hexdigest()[:16]}"

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

        options: dict[str, Any] = {"llm_int8_skip_modules": [*keep, "lm_head"]}
        if self.quantisation == "int8":
            return BitsAndBytesConfig(load_in_8bit=True, **options)  # type: ignore[no-untyped-call]
        compute = getattr(torch, self.dtype)
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute, **options)  # type: ignore[no-untyped-call]

    def _read(self, reader: Any, what: str, **options: Any) -> Any:
        try:
            return reader.from_pretrained(self.name, revision=self.revision or "main", trust_remote_code=False, **options)
        except Exception as error:  # damaged and foreign files make the library raise almost anything
            raise UserError(self._reason(error, what)) from error

    def _reason(self, error: Exception, what: str) -> str:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "trust_remote_code" in str(error):
            return (
                f"{self.name} asks for code of its own, which is never run; use a model of transformers' own classes, or convert the "
                "original Qwen-VL-Chat with cir convert qwen-vl-chat"
            )
        if isinstance(error, UnpicklingError):
            first = "its weights are pickles with code in them, which is never run"
        if Path(self.name).is_dir():
            return f"cannot read {what} of the folder {self.name!r} ({first[:200]}); get its files again, as safetensors"
        revision = f", revision {self.revision!r}" if self.revision else ""
        return (
            f"cannot read {what} of {self.name!r}{revision} (no folder, and not within reach on the hub: {first[:200]}); check the name, "
            "and fetch it beforehand with hf download, then HF_HUB_OFFLINE=1 works"
        )
