"""The model card of an export: what was trained on what, how well it does, and what it is not good for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from cir_lightning.exported import backbone_arguments
from cir_lightning.retrieval import report
from cir_lightning.retrieval.tables import to_markdown
from data_modules.errors import UserError

CARD = """\
---
library_name: cir-lightning
tags: [composed-image-retrieval, image-retrieval, peft]
{front}---
# {name}

Composed image retrieval: a picture and a sentence that says how the wanted picture differs find it in a gallery. {method}

```python
from cir_lightning import load
model = load("{name}")  # this folder
print(model.rank("reference.jpg", "the same in red", ["a.jpg", "b.jpg"]))
```

## Model
{facts}
## Results
{results}

## Limits
- Scores are cosine similarities that order a gallery; they are no probabilities.
- It was trained on the data named above alone. Other kinds of pictures, longer captions, negations and counts were not measured unless
  they are in the table.
- Whatever the base model has learnt from its own data, biases included, it still has.
- The licences of the base model and of the training data hold for this folder, too.
"""


def model_card(about: dict[str, Any], config: dict[str, Any], checkpoint: Path, name: str, *, merged: bool = False) -> str:
    """The text of ``README.md``.

    Args:
        about: what is in the export's ``config.yaml``, before merging.
        config: of the run.
        checkpoint: the file that was exported; results lie beside it.
        name: of the folder.
        merged: whether the adapters are merged.
    """
    encoder = about["model"]["encoder"]
    arguments, base = encoder.get("init_args", {}), about["base"]
    data, trainer = config["data"], config.get("trainer") or {}
    facts = {
        "encoder": encoder["class_path"],
        "backbone": (arguments.get("backbone") or {}).get("class_path"),
        "base model": "; ".join(map(_base, base.values())) or "comes with pip packages",
        "vision tower": about["tower"],
        "adapters": _adapters(backbone_arguments(encoder), merged=merged),
        "query": _code(arguments.get("query_template")),
        "target": _code(arguments.get("target_template")),
        "pooling": arguments.get("pooling"),
        "trained on": f"{data['class_path']} in batches of {data.get('init_args', {}).get('batch_size', '?')} for each process",
        "steps": trainer.get("max_steps"),
        "pictures": f"made square by {about['data']['init_args']['transform']!r}",
        "made by": f"cir-lightning {about['cir_lightning']}",
    }
    ids = [one["model"] for one in base.values() if one["commit"]]
    return CARD.format(
        front="".join(["base_model:\n", *(f"- {one}\n" for one in ids)]) if ids else "",
        name=name,
        method=_method(encoder["class_path"]),
        facts="".join(f"- {key}: {value}\n" for key, value in facts.items() if value is not None),
        results=results_of(checkpoint),
    )


def results_of(checkpoint: Path) -> str:
    """The tables of the run that the checkpoint is of, as Markdown; those of another or an older checkpoint are left out."""
    tables = []
    for split in ("test", "val"):
        file = checkpoint.parent.parent / split / "results.json"
        try:
            found = report.read(file) if file.is_file() else None
        except UserError:
            found = None
        fresh = file.is_file() and file.stat().st_mtime >= checkpoint.stat().st_mtime  # training that went on has replaced best.ckpt
        if found and fresh and Path(found.checkpoint).name == checkpoint.name:
            tables.append(to_markdown(replace(found, checkpoint=checkpoint.name)))
    return "\n\n".join(tables) or "No newer ones lie beside the checkpoint that was exported: score it with `cir test --ckpt_path` first."


def _method(encoder: str) -> str:
    if not encoder.endswith("IntentEncoder"):
        return f"The encoder is {encoder}."
    return (
        "CIR-LVLM (arXiv 2412.11087): a large vision-language model reads picture and sentence in one pass; a Connector turns frozen patch "
        "features into image tokens, and the LLM has low-rank adapters."
    )


def _base(one: dict[str, Any]) -> str:
    """Of a folder, neither where it lies nor whose it is."""
    if one["commit"]:
        return f"{one['model']}, revision {one['commit']}"
    return f"a local folder {Path(one['model']).name!r} of the content {one['key']}; where it lies on your machine is said in config.yaml"


def _adapters(backbone: dict[str, Any], *, merged: bool) -> str | None:
    sizes = [
        f"LoRA of rank {lora.get('rank')}, alpha {lora.get('alpha')} on the {part}"
        for part, lora in (("LLM", backbone.get("lora")), ("vision transformer", backbone.get("vision_lora")))
        if lora
    ]
    if not sizes:
        return None
    packed = backbone.get("quantisation", "none")
    over = f"trained over {packed} weights; `quantisation: none` in config.yaml loads them over unquantised ones, with other figures"
    where = ["merged into the base model in the folder `merged`"] if merged else [over] if packed != "none" else []
    return ", ".join([" and ".join(sizes), *where])


def _code(text: str | None) -> str | None:
    return None if text is None else f"`{text}`"
