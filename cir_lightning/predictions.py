"""What became of each query: the ranked lists of ``cir predict``, the files for test servers, a table of ranks."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pandas as pd  # type: ignore[import-untyped]
from lightning.pytorch import Callback

from cir_lightning.retrieval import submission
from cir_lightning.retrieval.report import is_official
from cir_lightning.storage import replace_file
from cir_lightning.study.captions import JOIN

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lightning.pytorch import LightningModule, Trainer

    from cir_lightning.module import CIRModule
    from cir_lightning.retrieval.ranking import Ranking
    from data_modules.records import EvaluationSet


def query_table(module: CIRModule) -> pd.DataFrame:
    """A line for each query of each group: the rank that ``R@K`` looks at, words of the caption, what is known of it."""
    lines = []
    for evaluation, ranking in module.rankings.values():
        for query, rank in zip(evaluation.queries, recall_ranks(evaluation, ranking), strict=True):
            known = {name: JOIN.join(values) for name, values in module.data.describe(query).items()}
            own: dict[str, Any] = {"group": evaluation.name, "query": query.id, "reference": query.reference, "caption": query.caption}
            own |= {"rank": rank, "words": len(query.caption.split())}
            lines.append(own | known | own)  # a property of such a name gives way
    return pd.DataFrame(lines)


def recall_ranks(evaluation: EvaluationSet, ranking: Ranking) -> list[int]:
    """Of each query, the 1-based rank that ``R@K`` looks at; a number beyond the gallery where no right answer can be reached."""
    ranks = ranking.ranks if evaluation.recall_of == "any" else ranking.answer_ranks[:, 0]
    return [int(rank) for rank in ranks]


class Predictions(Callback):
    """Ranked lists of ``cir predict`` as JSON lines, and the files for test servers, checked.

    A line has the query's id, group, reference and caption, picture names best first, their scores, and the rank of the right answer that
    ``R@K`` looks at; null where the answers are secret. ``cir analyze failures`` reads them.

    Args:
        folder: the run folder; the lists are ``<folder>/predictions.jsonl``, those of val ``<folder>/predictions-val.jsonl``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002 - Lightning's signature
        """Refuse what the test servers will not take, before anything is encoded."""
        module: CIRModule = pl_module  # type: ignore[assignment]
        for evaluation in module.data.evaluation_sets("predict"):
            if evaluation.submission:
                submission.require_possible(evaluation, module.top)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the files."""
        if not trainer.is_global_zero:
            return
        module: CIRModule = pl_module  # type: ignore[assignment]
        rankings = module.rankings
        file = self.folder / ("predictions-val.jsonl" if module.data.predicts == "val" else "predictions.jsonl")
        replace_file(file, lambda part: part.write_text("".join(_lines(rankings)), encoding="utf-8"))
        print(f"predictions: {file}")
        for evaluation, ranking in rankings.values():
            if evaluation.submission:
                path = submission.write(ranking, evaluation, self.folder)
                submission.check(path, evaluation)
                counts = f"{len(evaluation.queries):,} queries, {len(evaluation.gallery):,} gallery pictures, {path.stat().st_size:,} bytes"
                if is_official(evaluation, "hidden", module.data.official):
                    print(f"{path}: ready for the test server ({counts})")
                else:
                    print(f"{path}: not ready for the test server, other counts than the official ones ({counts}); see cir data check")


def _lines(rankings: dict[str, tuple[EvaluationSet, Ranking]]) -> Iterator[str]:
    for name, (evaluation, ranking) in rankings.items():
        ranks = recall_ranks(evaluation, ranking)
        for query, rank, top, scores in zip(evaluation.queries, ranks, ranking.top.tolist(), ranking.scores.tolist(), strict=True):
            record: dict[str, Any] = {
                "query": query.id,
                "group": name,
                "reference": query.reference,
                "caption": query.caption,
                "names": [evaluation.gallery[i] for i in top],
                "scores": [round(score, 6) for score in scores],
                "rank": rank if query.targets else None,
            }
            yield json.dumps(record, ensure_ascii=False) + "\n"
