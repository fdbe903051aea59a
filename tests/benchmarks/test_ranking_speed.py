"""What ranking costs beside the way of the published repositories: ``make bench``.

Peak memory is that of a process of its own (``python tests/benchmarks/test_ranking_speed.py JOB``, on Linux): its largest resident set
(VmHWM) while it does the job, less its resident set before, when the vectors and records are there and two queries have been ranked.
"""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cir_lightning.retrieval import ranking as engine
from cir_lightning.retrieval.figures import score
from data_modules.records import EvaluationSet, Query


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
    """Vectors (800 x 1,024 and 123,403 x 1,024) and CIRCO's protocol, with 1 to 7 right answers for each query."""
    names = tuple(f"{i:012d}" for i in range(123_403))
    asked = tuple(Query(str(i), names[150 * i], "", tuple(names[150 * i + 1 : 150 * i + 2 + i % 7])) for i in range(800))
    evaluation = EvaluationSet("circo", asked, names, remove_reference=False, recall_at=(5, 50), map_at=(5, 50), recall_of="first")
    return unit(800, 1024, seed=1), unit(123_403, 1024, seed=2), (evaluation,)


def peers(queries, gallery, sets):
    """All distances, all of them sorted, an array of name strings in that order, compared with reference and target; for each protocol."""
    place = {name: i for i, name in enumerate(sets[0].gallery)}
    return [sorted_names(1 - queries @ gallery[[place[name] for name in one.gallery]].T, one) for one in sets]


def sorted_names(distances, evaluation):
    names = np.array(evaluation.gallery)[distances.argsort(dim=1).numpy()]
    if evaluation.remove_reference:
        names = names[names != np.array([[query.reference] for query in evaluation.queries])].reshape(len(names), -1)
    hits = names == np.array([[query.targets[0]] for query in evaluation.queries])
    return {f"R@{k}": 100.0 * float(hits[:, :k].sum()) / len(hits) for k in evaluation.recall_at}


def ours(queries, gallery, sets, top=50):
    rows = [torch.arange(len(queries))] * len(sets)
    rankings = engine.rank_all(queries, gallery, sets, rows=rows, names=sets[0].gallery, top=top)
    return [score(ranking, evaluation) for ranking, evaluation in zip(rankings, sets, strict=True)]


def ours_without_lists(queries, gallery, sets):
    return ours(queries, gallery, sets, top=0)


def product_alone(queries, gallery, sets):
    return queries.double() @ gallery.double().T


JOBS = {job.__name__: job for job in (peers, ours, ours_without_lists, product_alone)}


def keep(benchmark, capsys, job, data):
    """Record the peak memory of a job, too."""
    run = subprocess.run([sys.executable, __file__, job, data.__name__], capture_output=True, text=True, check=True)
    benchmark.extra_info["peak_megabytes"] = float(run.stdout)
    with capsys.disabled():
        print(f"\n{benchmark.name}: {benchmark.extra_info}")


@pytest.mark.benchmark(group="Fashion-IQ shirt, three protocols, from vectors: 2,038 x 6,346 x 256")
@pytest.mark.parametrize("job", JOBS)
def test_fashioniq_shirt(benchmark, capsys, job):
    data = fashioniq_shirt()
    found = benchmark.pedantic(JOBS[job], args=data, rounds=2 if job == "peers" else 9, warmup_rounds=1)
    if "ours" in job:
        assert found == peers(*data)
        assert 10 < found[0]["R@10"] < 90
    keep(benchmark, capsys, job, fashioniq_shirt)


@pytest.mark.benchmark(group="Fashion-IQ shirt, three protocols, from given scores: 2,038 x 6,346")
@pytest.mark.parametrize("job", ["peers", "ours", "ours_without_lists"])
def test_fashioniq_shirt_from_scores(benchmark, monkeypatch, job):
    """What there is besides the product, which takes all of us the same multiplications."""
    queries, gallery, sets = fashioniq_shirt()
    scores = queries @ gallery.T
    if job == "peers":
        place = {name: i for i, name in enumerate(sets[0].gallery)}
        distances = [1 - scores[:, [place[name] for name in one.gallery]] for one in sets]
        benchmark.pedantic(lambda: list(map(sorted_names, distances, sets)), rounds=2, warmup_rounds=1)
    else:
        monkeypatch.setattr(engine, "inner_products", lambda rows, table, pictures, out: out.copy_(rows[:, pictures]))
        benchmark.pedantic(JOBS[job], args=(scores, gallery, sets), rounds=9, warmup_rounds=1)


@pytest.mark.benchmark(group="CIRCO, 800 x 123,403 x 1,024")
def test_circo(benchmark, capsys):
    (figures,) = benchmark.pedantic(ours, args=circo(), rounds=1)
    assert figures.keys() == {"R@5", "R@50", "mAP@5", "mAP@50"}
    keep(benchmark, capsys, "ours", circo)


def memory(key):
    """In bytes: VmRSS, resident now; VmHWM, its peak."""
    return 1024 * int(re.search(rf"{key}:\s*(\d+) kB", Path("/proc/self/status").read_text())[1])


def main(job, data):
    queries, gallery, sets = globals()[data]()
    JOBS[job](queries[:2], gallery, [replace(one, queries=one.queries[:2]) for one in sets])
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is resident
    before = memory("VmRSS")
    JOBS[job](queries, gallery, sets)
    print((memory("VmHWM") - before) / 1e6)


if __name__ == "__main__":
    main(*sys.argv[1:])
