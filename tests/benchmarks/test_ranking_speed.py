"""What ranking costs beside the way of the published repositories: ``make bench``.

Peak memory is that of a process of its own (``python tests/benchmarks/test_ranking_speed.py JOB``): its largest resident set, less its
largest one before the job, when the vectors and records are there and the job has run once on a few queries.
"""

import resource
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from cir_lightning.retrieval.figures import score
from cir_lightning.retrieval.ranking import rank, rank_all
from data_modules.records import EvaluationSet, Query

MEGABYTE = 1e6


def unit(count, width, seed):
    return torch.nn.functional.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def fashioniq_shirt():
    """Vectors (2,038 x 256 and 6,346 x 256) and the three protocols of Fashion-IQ's largest category."""
    rng = np.random.default_rng(0)
    names = tuple(f"B{number:09d}" for number in rng.permutation(10**6)[:6346])
    small = tuple(names[i] for i in sorted(rng.permutation(6346)[:3089]))
    pairs = [rng.choice(3089, 2, replace=False) for _ in range(2038)]
    asked = tuple(Query(str(i), small[a], f"caption {i}", (small[b],)) for i, (a, b) in enumerate(pairs))
    original = EvaluationSet("original", asked, names, remove_reference=False, recall_at=(10, 50))
    gallery = unit(6346, 256, seed=1)
    targets = gallery[[names.index(query.targets[0]) for query in asked]]
    queries = torch.nn.functional.normalize(targets + 4 * unit(2038, 256, seed=2), dim=1)
    return queries, gallery, (original, replace(original, remove_reference=True), replace(original, gallery=small, remove_reference=True))


def circo():
    """Vectors (800 x 1,024 and 123,403 x 1,024) and CIRCO's protocol with 1 to 7 right answers for each query."""
    names = tuple(f"{i:012d}" for i in range(123_403))
    asked = tuple(Query(str(i), names[150 * i], "", tuple(names[150 * i + 1 : 150 * i + 2 + i % 7])) for i in range(800))
    evaluation = EvaluationSet("circo", asked, names, remove_reference=False, recall_at=(5, 50), map_at=(5, 50), recall_of="first")
    return unit(800, 1024, seed=1), unit(123_403, 1024, seed=2), evaluation


def peers(queries, gallery, sets):
    """All distances, all of them sorted, an array of name strings in that order, compared with reference and target; for each protocol."""
    figures = []
    for evaluation in sets:
        place = {name: i for i, name in enumerate(sets[0].gallery)}
        distances = 1 - queries @ gallery[[place[name] for name in evaluation.gallery]].T
        names = np.array(evaluation.gallery)[distances.argsort(dim=1).numpy()]
        if evaluation.remove_reference:
            names = names[names != np.array([[query.reference] for query in evaluation.queries])].reshape(len(names), -1)
        hits = names == np.array([[query.targets[0]] for query in evaluation.queries])
        figures.append({f"R@{k}": 100.0 * float(hits[:, :k].sum()) / len(hits) for k in evaluation.recall_at})
    return figures


def ours(queries, gallery, sets, top=50):
    rows = [torch.arange(len(queries))] * len(sets)
    rankings = rank_all(queries, gallery, sets, rows=rows, names=sets[0].gallery, top=top)
    return [score(ranking, evaluation) for ranking, evaluation in zip(rankings, sets, strict=True)]


def figures_alone(queries, gallery, sets):
    return ours(queries, gallery, sets, top=1)


def product_alone(queries, gallery, sets):
    return queries.double() @ gallery.double().T


JOBS = {job.__name__: job for job in (peers, ours, figures_alone, product_alone)}


def peak_memory(job):
    """Of a job in a process of its own, in bytes."""
    run = subprocess.run([sys.executable, __file__, job], capture_output=True, text=True, check=True)
    return int(run.stdout)


def keep(benchmark, capsys, **figures):
    benchmark.extra_info |= figures
    with capsys.disabled():
        print(f"\n{benchmark.name}: {figures}")


@pytest.mark.benchmark(group="Fashion-IQ shirt, three protocols, 2,038 x 6,346 x 256")
@pytest.mark.parametrize("job", JOBS)
def test_fashioniq_shirt(benchmark, capsys, job):
    queries, gallery, sets = fashioniq_shirt()
    found = benchmark.pedantic(JOBS[job], args=(queries, gallery, sets), rounds=2 if job == "peers" else 9, warmup_rounds=1)
    if job in {"ours", "figures_alone"}:
        assert found == peers(queries, gallery, sets)
        assert 10 < found[0]["R@10"] < 90
    keep(benchmark, capsys, peak_megabytes=peak_memory(job) / MEGABYTE)


@pytest.mark.benchmark(group="CIRCO, 800 x 123,403 x 1,024")
def test_circo(benchmark, capsys):
    queries, gallery, evaluation = circo()
    ranking = benchmark.pedantic(rank, args=(queries, gallery, evaluation), rounds=1)
    assert ranking.top.shape == (800, 50)
    keep(benchmark, capsys, peak_megabytes=peak_memory("circo") / MEGABYTE, vectors_megabytes=gallery.nbytes / MEGABYTE)


def few(evaluation):
    return replace(evaluation, queries=evaluation.queries[:2])


def main(job):
    queries, gallery, evaluations = circo() if job == "circo" else fashioniq_shirt()
    work, few_evaluations = (rank, few(evaluations)) if job == "circo" else (JOBS[job], tuple(map(few, evaluations)))
    work(queries[:2], gallery, few_evaluations)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    work(queries, gallery, evaluations)
    print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))


if __name__ == "__main__":
    main(sys.argv[1])
