"""LoRA training of 7B models with random weights on a GPU, held against ``cir estimate``: ``make bench-gpu``.

Real architectures, file layouts, recipes and commands; random weights, pictures of noise, a tokenizer that knows the words that are used.
Every row is a ``cir fit`` of some steps within this process. After every row the tables are written anew, so that what is cut short is not
lost, and a row that fails leaves the others alone. 35 GB of weights are written beside the tables.

Model FLOPs are those of :mod:`cir_lightning.estimate` without what checkpointing computes again (as in PaLM, arXiv 2204.02311, appendix B).
"""

from __future__ import annotations

import argparse
import csv
import gc
import json
import shutil
import sys
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from lightning.pytorch import Callback
from PIL import Image
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1]))

from fakes.lvlms import tiny_config, tiny_processor
from fakes.tiny import tiny_tokenizer

from cir_lightning.backbones.qwen_vl import CONFIG, CONNECTOR, FORMAT, LLM, VISION, QwenResampler, QwenViT, VisionSizes
from cir_lightning.estimate_cli import run as estimate
from cir_lightning.estimate_report import CAPTION, GIB
from cir_lightning.lightning_cli import CIRCLI, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

WARM_UP, STEPS = 2, 5
SHARD = 2**31  # bytes of a file of weights
WORDS = "but make it darker red blue green longer shorter without sleeves pattern and collar brighter wider"
TEMPLATES = "Modify Describe the image In in one word"
BACKBONE = "--model.encoder.init_args.backbone.init_args"
UNITS = {
    "batch": "",
    "step": "s",
    "tokens": "/s",
    "tokens off": "%",
    "MFU measured": "%",
    "MFU data sheet": "%",
    "loading": "GiB",
    "peak": "GiB",
    "estimated": "GiB",
    "off": "%",
}


class Row(NamedTuple):
    """What is measured: a model, how its base is packed, whether activations are recomputed, triplets of a batch."""

    model: str
    quantisation: str
    checkpointing: bool
    batch: int


def rows(batches: tuple[int, ...]) -> list[Row]:
    """The most important first: a rented machine may be taken away."""
    first = batches[len(batches) // 2]
    return [
        Row(model, quantisation, checkpointing, batch)
        for batch in sorted(batches, key=lambda one: (one != first, one))
        for checkpointing in (True, False)
        for quantisation in ("none", "nf4")
        for model in MODELS
    ]


# ---- models and data ---------------------------------------------------------------------------------------------------------------


def random_weights(module: torch.nn.Module, device: str) -> Iterator[tuple[str, Tensor]]:
    """A tensor for each of a module's on the meta device: ones for norms, small normal numbers else, bfloat16."""
    for name, like in module.state_dict().items():
        name = name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")  # as on the hub
        one = torch.empty(like.shape, dtype=torch.bfloat16, device=device)
        yield name, (one.fill_(1) if like.ndim == 1 and name.endswith("weight") else one.normal_(0, 0.02)).cpu()


def write_weights(folder: Path, module: torch.nn.Module, device: str) -> None:
    """Sharded safetensors with an index, one shard in memory at a time."""
    shards: list[dict[str, Tensor]] = [{}]
    places: dict[str, str] = {}

    def flush() -> None:
        file = f"model-{len(shards):05d}.safetensors"
        save_file(shards[-1], folder / file, {"format": "pt"})
        places.update(dict.fromkeys(shards[-1], file))
        shards[-1] = {}

    for name, tensor in random_weights(module, device):
        if sum(one.nbytes for one in shards[-1].values()) > SHARD:
            flush()
            shards.append({})
        shards[-1][name] = tensor
    flush()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def write_tokenizer(folder: Path) -> None:
    tokenizer = tiny_tokenizer(f"{WORDS} {TEMPLATES} {CAPTION}".split(), bos=False)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(folder)


def write_qwen25(folder: Path, device: str, *, tiny: bool) -> list[str]:
    """Qwen2.5-VL-7B; the options that name it."""
    import transformers

    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    words = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4}
    words |= {"vocab_size": 152064, "rope_parameters": rope, "tie_word_embeddings": False}
    eyes = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "patch_size": 14, "spatial_merge_size": 2}
    eyes |= {"window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31], "out_hidden_size": 3584}
    own = {"text_config": words, "vision_config": eyes, "image_token_id": 151655, "video_token_id": 151656}
    small = {"hidden_size": 64, "intermediate_size": 128}
    config = tiny_config("qwen2_5_vl", vocab_size=1000, **small) if tiny else transformers.Qwen2_5_VLConfig(**own)
    processor = tiny_processor("qwen2_5_vl") if tiny else transformers.Qwen2VLImageProcessorPil()
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    processor.save_pretrained(folder)
    write_tokenizer(folder)
    with torch.device("meta"):
        write_weights(folder, transformers.AutoModelForImageTextToText.from_config(config), device)
    return ["--config=backbones/qwen2.5-vl.yaml", f"{BACKBONE}.model={folder}", f"{BACKBONE}.image_size={56 if tiny else 448}"]


def write_qwen_vl_chat(folder: Path, device: str, *, tiny: bool) -> list[str]:
    """The folder that ``cir convert qwen-vl-chat`` writes; the options that name it."""
    import transformers

    sizes = VisionSizes(width=32, layers=2, heads=4, patch_size=14, mlp_width=64) if tiny else VisionSizes()
    width = {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2} if tiny else {"intermediate_size": 11008}
    config = transformers.Qwen2Config(**{"vocab_size": 151936, **width}, rope_parameters={"rope_type": "default", "rope_theta": 1e4})
    queries, side = (16, 56) if tiny else (256, 448)
    (folder / LLM).mkdir(parents=True)
    config.save_pretrained(folder / LLM)
    write_tokenizer(folder / LLM)
    with torch.device("meta"):
        net, resampler = QwenViT(sizes), QwenResampler(queries=queries)
        resampler.build(sizes.width, (side // sizes.patch_size) ** 2, config.hidden_size)
        write_weights(folder / LLM, transformers.AutoModelForCausalLM.from_config(config), device)
    save_file(dict(random_weights(net, device)), folder / VISION)
    save_file(dict(random_weights(resampler, device)), folder / CONNECTOR)
    files = dict.fromkeys([VISION, CONNECTOR], "random")
    (folder / CONFIG).write_text(json.dumps({"format": FORMAT, "vision": sizes.__dict__, "queries": queries, "files": files}))
    return ["--config=backbones/qwen-vl-chat.yaml", f"{BACKBONE}.folder={folder}", f"{BACKBONE}.image_size={side}"]


MODELS: dict[str, Callable[..., list[str]]] = {"Qwen2.5-VL-7B": write_qwen25, "Qwen-VL-Chat": write_qwen_vl_chat}


def write_data(root: Path, triplets: int) -> None:
    """Captions of 6 to 18 words, 12 on average as Fashion-IQ's; for each two pictures of noise, as what comes twice is computed once."""
    (root / "images").mkdir(parents=True)
    draw, known = torch.Generator().manual_seed(0), WORDS.split()
    for number in range(2 * triplets):
        noise = torch.randint(0, 256, (448, 448, 3), dtype=torch.uint8, generator=draw)
        Image.fromarray(noise.numpy()).save(root / "images" / f"{number}.png", compress_level=0)
    with (root / "triplets.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("reference", "caption", "target", "split"))
        for number in range(triplets + 1):
            words = [known[at] for at in torch.randint(0, len(known), (6 + number % 13,), generator=draw).tolist()]
            place = 2 * (number % triplets)
            table.writerow((f"{place}.png", " ".join(words), f"{place + 1}.png", "val" if number == triplets else "train"))


# ---- a row -------------------------------------------------------------------------------------------------------------------------


class Clock(Callback):
    """Seconds of the steps, tokens through the LLM in the last one, and GiB of GPU memory at most until training began and from then on."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.tokens = 0
        self.loading: float | None = None
        self.peak: float | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Count from here on."""
        hook = lambda *given: self._count(given[-1]["inputs_embeds"])  # noqa: E731
        pl_module.encoder.backbone.llm.register_forward_pre_hook(hook, with_kwargs=True)
        self.loading = _peak()
        _forget()

    def _count(self, embeds: Tensor) -> None:
        self.tokens += embeds.shape[0] * embeds.shape[1]

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Begin."""
        _wait()
        self.tokens, self.start = 0, time.perf_counter()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """End."""
        _wait()
        self.seconds.append(time.perf_counter() - self.start)
        self.peak = _peak()


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _peak() -> float | None:
    return torch.cuda.max_memory_allocated() / GIB if torch.cuda.is_available() else None


def _forget() -> None:
    """Free what nothing holds any more, and let the peak begin at what is left."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def measure(options: list[str], folder: Path, gpu: str, matmul: float) -> dict[str, Any]:
    """One row: estimates, trains and compares; whatever goes wrong in training is told in the place of the seconds."""
    with redirect_stdout(StringIO()):
        estimate([*options, f"--gpu={gpu}", f"--json={folder / 'estimate.json'}"])
    tables = json.loads((folder / "estimate.json").read_text())
    clock = Clock()

    class Timed(CIRCLI):
        def instantiate_trainer(self, **kwargs: Any) -> Any:
            trainer = super().instantiate_trainer(**kwargs)
            trainer.callbacks.append(clock)
            return trainer

    _forget()
    try:
        run(["fit", *options, f"--trainer.default_root_dir={folder}"], Timed)
    except Exception as error:  # the machine may be rented: the other rows are wanted
        full = isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error)
        what = "out of memory" if full else f"failed: {' '.join(str(error).split()):.200}"
        return {"step": what, "estimated": _recipe(tables, "memory of one GPU", "all") / GIB}
    finally:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # 700 MB of optimizer state for every row
    return compared(clock, tables, matmul)


def compared(clock: Clock, tables: dict[str, Any], matmul: float) -> dict[str, Any]:
    """What was measured, beside the estimate."""
    step = median(clock.seconds[WARM_UP:])
    work = [_recipe(tables, "compute", f"{part} [TFLOP]") for part in ("LLM, forward", "LLM, backward", "Connector and soft prompt")]
    rate, tokens = sum(work) / step, sum(side["in a batch"] for side in tables["tokens"].values())
    figures = {"step": step, "tokens": clock.tokens / step, "tokens off": 100 * (tokens / clock.tokens - 1)}
    figures |= {"MFU measured": 100 * rate / matmul, "MFU data sheet": 100 * rate / tables["setting"]["gpu"]["bf16"]}
    figures |= {"loading": clock.loading, "peak": clock.peak, "estimated": _recipe(tables, "memory of one GPU", "all") / GIB}
    return figures | {"off": None if clock.peak is None else 100 * (figures["estimated"] / clock.peak - 1)}


def _recipe(tables: dict[str, Any], table: str, row: str) -> float:
    """A number of ``cir estimate``, of the recipe's way with checkpointing."""
    return next(float(value) for name, value in tables[table][row].items() if "(recipe)" in name)


def matmul_peak(device: str, side: int) -> float:
    """TFLOP/s of square bfloat16 products, the best of ten."""
    left = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    best = float("inf")
    for _ in range(10):
        _wait()
        start = time.perf_counter()
        left @ left
        _wait()
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best / 1e12


def write_tables(out: Path, header: dict[str, Any], done: list[dict[str, Any]]) -> None:
    """The rows so far as JSON and Markdown."""
    (out / "bench-gpu.json").write_text(json.dumps({"header": header, "rows": done}, indent=2) + "\n")
    names = [*Row._fields[:3], *UNITS]
    cells = [names, ["---"] * len(names), *([_shown(row.get(name), UNITS.get(name, "")) for name in names] for row in done)]
    lines = [*(f"- {name}: {value}" for name, value in header.items()), "", *(f"| {' | '.join(row)} |" for row in cells)]
    (out / "bench-gpu.md").write_text("\n".join(lines) + "\n")


def _shown(value: Any, unit: str) -> str:
    return "" if value is None else f"{value:.3g} {unit}".strip() if isinstance(value, float) else str(value)


def main(argv: list[str]) -> int:
    """Measure all rows."""
    parser = argparse.ArgumentParser(prog="make bench-gpu", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/bench-gpu"))
    parser.add_argument("--gpu", default="h100-80", help="as cir estimate calls it")
    parser.add_argument("--tiny", action="store_true", help="tiny models, on a CPU: shows that the program works")
    parser.add_argument("--rows", type=int, help="the first so many")
    asked = parser.parse_args(argv)
    if not asked.tiny and not torch.cuda.is_available():
        print(
            "bench-gpu: there is no CUDA device here, so nothing was measured; run it on a machine with one, or try --tiny", file=sys.stderr
        )
        return 1
    device, out = "cpu" if asked.tiny else "cuda", asked.out.resolve()
    if out.exists() and any(out.iterdir()):
        print(f"bench-gpu: {out} holds something; remove it, or name another folder with --out", file=sys.stderr)
        return 1
    batches = (4, 8) if asked.tiny else (8, 16, 32, 64, 128)
    write_data(out / "data", max(batches))
    named = {name: write(out / "models" / name, device, tiny=asked.tiny) for name, write in MODELS.items()}
    peak = matmul_peak(device, 256 if asked.tiny else 8192)
    where = "CPU, tiny models" if asked.tiny else torch.cuda.get_device_name()
    header = {"device": where, "torch": torch.__version__, "CUDA": torch.version.cuda, "bf16 product TFLOP/s": peak}
    header |= {"command": " ".join([Path(__file__).name, *argv]), "weights": "random", "seed": 0, "steps": f"{STEPS} after {WARM_UP}"}
    done: list[dict[str, Any]] = []
    common = ["--config=triplets.yaml", f"--data.root={out / 'data'}", "--trainer.enable_progress_bar=false", "--trainer.logger=false"]
    common += [f"--trainer.max_steps={WARM_UP + STEPS}", "--trainer.val_check_interval=1000", "--model.yardsticks=false"]
    for number, row in enumerate(rows(batches)[: asked.rows]):
        options = [*common, named[row.model][0], *named[row.model][1:], f"--data.batch_size={row.batch}"]
        options += [f"{BACKBONE}.quantisation={row.quantisation}", f"{BACKBONE}.gradient_checkpointing={str(row.checkpointing).lower()}"]
        done.append(row._asdict() | measure(options, out / f"row-{number}", asked.gpu, peak))
        print(done[-1], flush=True)
        write_tables(out, header, done)
    return 0 if any(isinstance(row["step"], float) for row in done) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
