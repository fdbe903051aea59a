"""A run of ``cir bench`` as tables, for a page and for the terminal. Light: no torch."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from cir_lightning.bench.results import COLD, COLD_LATENCY, GALLERY, ITEM, LATENCY, OTHER, PICTURES, QUERIES, ROWS, TRAINING
from data_modules.stages import RANKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cir_lightning.bench.results import Arm, Bench, Work

KINDS = (TRAINING, GALLERY, QUERIES)
NONE = "-"
ONCE = " (once per picture, ever)"
DOUBTFUL = 1.3  # times slower


class Table(NamedTuple):
    """Cells of text with a title above and notes below; the first row names the columns."""

    title: str
    cells: list[list[str]]
    notes: list[str]


def to_markdown(bench: Bench) -> str:
    """The page: header, arms side by side, and for every arm all tables."""
    lines = ["# cir bench", "", *(f"- {name}: {value}" for name, value in facts(bench)), ""]
    lines += ["![stages by batch size](bench.png)", ""]
    for table in summaries(bench):
        lines += _markdown(table)
    for arm in bench.arms:
        lines += [f"## {arm.name}", ""]
        for table in [*overviews(arm, bench.matrix_peak(arm)), *details(arm, bench.matrix_peak(arm))] if not arm.refused else ():
            lines += _markdown(table)
        lines += [f"Not measured: {arm.refused}", ""] if arm.refused else []
        lines += [*(f"- trace of torch's profiler: `{trace}`" for trace in arm.traces), ""] if arm.traces else []
    return "\n".join(lines).rstrip() + "\n"


def to_text(bench: Bench) -> str:
    """For the terminal: without the details of every batch size."""
    lines = [f"{name}: {value}" for name, value in facts(bench)]
    for arm in bench.arms:
        lines += ["", f"== {arm.name}" + (f": not measured: {arm.refused}" if arm.refused else "")]
        for table in overviews(arm, bench.matrix_peak(arm)) if not arm.refused else ():
            lines += ["", *as_text(table)]
    for table in summaries(bench):
        lines += ["", *as_text(table)]
    return "\n".join(lines)


def as_text(table: Table) -> list[str]:
    """Aligned lines."""
    widths = [max(map(len, column)) for column in zip(*table.cells, strict=True)]
    rows = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in table.cells]
    return [table.title, *rows, *(f"  {note}" for note in table.notes)]


def _markdown(table: Table) -> list[str]:
    first, *rest = table.cells
    rule = ["---", *["---:"] * (len(first) - 1)]
    return [f"### {table.title}", "", *(f"| {' | '.join(row)} |" for row in (first, rule, *rest)), "", *(f"- {n}" for n in table.notes), ""]


def facts(bench: Bench) -> list[tuple[str, Any]]:
    """What it was measured on, and how."""
    header = dict(bench.header)
    memory, gpu, gpu_memory = (header.pop(name) for name in ("memory_bytes", "gpu", "gpu_memory_bytes"))
    header |= {"memory": _gib(memory), "gpu": f"{gpu}, {_gib(gpu_memory)}" if gpu else "none"}
    for arm in bench.arms:
        if arm.works:
            parts = ", ".join(f"{name} {number:,}" for name, number in arm.parameters.items())
            peak = f"matrix product {bench.matrix_peak(arm) / 1e9:,.0f} GFLOP/s"
            header[arm.name] = f"{arm.label}; {arm.device}, {arm.precision}, seed {arm.seed}, {peak}; parameters: {parts}"
    return list(header.items())


# ---- by batch size -------------------------------------------------------------------------------------------------------------------


def overviews(arm: Arm, peak: float) -> list[Table]:
    """For training, gallery and queries a table of whole batches and one of stages; then the latency of a query and the ranking."""
    found = []
    for kind in KINDS:
        works = [work for work in arm.works if work.kind == kind]
        refused = [f"batch {work.batch} is not measured: {work.refused}" for work in works if work.refused]
        done = [work for work in works if not work.refused]
        if done:
            found += [_wholes(kind, done, peak, refused), _stages(kind, done, arm)]
        elif refused:
            found.append(Table(kind, [["nothing was measured"]], refused))
    return [*found, *_latency(arm), *_evaluation(arm)]


def _wholes(kind: str, works: Sequence[Work], peak: float, notes: list[str]) -> Table:
    item = ITEM[kind]
    names = ["batch", "ms", "ms unobserved", f"ms per {item}", f"{item.replace('query', 'querie')}s/s", "tokens", "computed", "padding"]
    cells = [[*names, "GFLOP", "GFLOP/s", "of peak", "peak MiB"]]
    for work in works:
        real, computed = work.total_tokens()
        flops = sum(work.flops.values())
        cells.append(
            [
                str(work.batch),
                _ms(work.whole),
                _ms(median(work.unobserved)),
                _ms(work.whole / work.batch),
                _number(work.batch / work.whole),
                *_padding(real, computed),
                *_rates(flops, work.whole, peak),
                NONE if work.peak is None else _mib(max(work.peak.values())),
            ]
        )
    notes = [*notes, *(f"batch {work.batch}: {note}" for work in works for note in [*work.notes, *_disturbed(work, peak)])]
    return Table(f"{kind}, whole {'steps' if kind == TRAINING else 'batches'}", cells, notes)


def _disturbed(work: Work, peak: float) -> list[str]:
    """What makes its times doubtful."""
    whole = [sum(one.values()) for one in work.seconds]
    said = [f"the slowest round took {max(whole) / min(whole):.1f} times the fastest"] if max(whole) > DOUBTFUL * min(whole) else []
    if work.matrix * DOUBTFUL < peak:
        said.append(f"a matrix product right afterwards ran at {100 * work.matrix / peak:.0f} % of its best: the machine was busy")
    return said


def _stages(kind: str, works: Sequence[Work], arm: Arm) -> Table:
    """Time and share of every stage, and what the pictures of a batch would cost on top if there were no cache."""
    rows = list(dict.fromkeys(row for work in works for row in work.rows()))
    cells = [["stage", *(f"batch {work.batch}" for work in works)]]
    shares = [work.shares() for work in works]
    for row in rows:
        times = [work.time(*work.rows().get(row, ())) for work in works]
        cells.append([row, *(f"{_ms(time)} ({_percent(share.get(row, 0.0))})" for time, share in zip(times, shares, strict=True))])
    cold = [cold_rows(arm, work) for work in works]
    if any(cold):
        cells += [[row + ONCE, *(_cold_cell(work, cost, row) for work, cost in zip(works, cold, strict=True))] for row in COLD]
    notes = ["ms, and share of the step" if kind == TRAINING else "ms, and share of the batch"]
    notes += ["once per picture, ever: of all pictures of the batch, and their share if features were not cached"] if any(cold) else []
    return Table(f"{kind}, stages", cells, notes)


def _cold_cell(work: Work, cost: dict[str, float], row: str) -> str:
    return f"[{_ms(cost[row])} ({_percent(cost[row] / (work.whole + sum(cost.values())))})]" if cost else NONE


def cold_rows(arm: Arm, work: Work) -> dict[str, float]:
    """Seconds that the pictures of a batch would take through the vision tower; empty where that was not measured or is in it anyway."""
    towers = [one for one in arm.works if one.kind == PICTURES and not one.refused]
    if not towers or set(COLD) & set(work.stages):
        return {}
    like = max((one for one in towers if one.batch <= max(work.batch, towers[0].batch)), key=lambda one: one.batch)
    return {row: like.time(row) / like.batch * work.pictures for row in COLD}


def _latency(arm: Arm) -> list[Table]:
    works = [work for kind in (LATENCY, COLD_LATENCY) if (work := arm.find(kind))]
    if not works:
        return []
    rows = [*COLD, *ROWS[LATENCY], OTHER]
    cells = [["one query", *(work.kind.partition(", ")[2] for work in works)]]
    cells += [[row, *(_ms(work.time(*work.rows()[row])) if row in work.rows() else NONE for work in works)] for row in rows]
    for name, choose in (("whole, median", median), ("whole, slowest", max), ("whole, fastest", min)):
        cells.append([name, *(_ms(choose([sum(one.values()) for one in work.seconds])) for work in works)])
    asked = f"{len(works[0].seconds)} queries, one after the other"
    return [Table("latency of a query, ms", cells, [f"{asked}; {arm.sizes['gallery']:,} pictures are ranked"])]


def _evaluation(arm: Arm) -> list[Table]:
    """What an evaluation takes in all, from its parts."""
    parts = {kind: max((one for one in arm.works if one.kind == kind and not one.refused), key=_rate, default=None) for kind in KINDS[1:]}
    ranking, gallery, queries = arm.find(RANKING), parts[GALLERY], parts[QUERIES]
    if not (ranking and gallery and queries):
        return []
    counts = {GALLERY: arm.sizes["gallery"], QUERIES: arm.sizes["queries"]}
    seconds = {f"{kind}, batch {work.batch}": counts[kind] / _rate(work) for kind, work in ((GALLERY, gallery), (QUERIES, queries))}
    seconds[f"{RANKING}"] = ranking.time(RANKING)
    whole = sum(seconds.values())
    cells = [["part", "seconds", "share"], *([name, f"{one:.3f}", _percent(one / whole)] for name, one in seconds.items())]
    notes = [f"by arithmetic from the batches above: {counts[GALLERY]:,} pictures, {counts[QUERIES]:,} queries", *ranking.notes]
    return [Table("a whole evaluation, features cached", [*cells, ["whole", f"{whole:.3f}", _percent(1.0)]], notes)]


def _rate(work: Work) -> float:
    return work.batch / work.whole


# ---- one batch size ------------------------------------------------------------------------------------------------------------------


def details(arm: Arm, peak: float) -> list[Table]:
    """Every work by itself, all that is known of its stages."""
    return [_detail(work, peak) for work in arm.works if not work.refused]


def _detail(work: Work, peak: float) -> Table:
    names = ["stage", "ms", "fastest", "slowest", "share", "tokens", "computed", "padding", "GFLOP", "GFLOP/s", "of peak", "peak MiB"]
    cells = [names]
    shares = work.shares()
    for row, stages in work.rows().items():
        cells.append([row, *_detail_cells(work, stages, peak, shares[row])])
    everything = tuple(work.stages)
    cells.append(["whole", *_detail_cells(work, everything, peak, sum(shares.values()))])
    notes = [f"{len(work.seconds)} rounds; {work.pictures} distinct pictures"] if work.pictures else [f"{len(work.seconds)} rounds"]
    notes += [f"{_mib(work.held)} MiB were held before, on top of which peaks are"] if work.held is not None else ["memory is not told"]
    return Table(f"{work.kind}, batch {work.batch}", cells, [*notes, *work.notes, *_disturbed(work, peak)])


def _detail_cells(work: Work, stages: Iterable[str], peak: float, share: float) -> list[str]:
    stages = tuple(stages)
    each = [sum(one.get(name, 0.0) for name in stages) for one in work.seconds]
    real, computed = (sum(work.tokens.get(name, (0.0, 0.0))[at] for name in stages) for at in (0, 1))
    memory = [work.peak[name] for name in stages if work.peak and name in work.peak]
    return [
        *(_ms(choose(each)) for choose in (median, min, max)),
        _percent(share),
        *_padding(real, computed),
        *_rates(sum(work.flops.get(name, 0.0) for name in stages), median(each), peak),
        _mib(max(memory)) if memory else NONE,
    ]


# ---- arms side by side ---------------------------------------------------------------------------------------------------------------


def summaries(bench: Bench) -> list[Table]:
    """The arms side by side at every batch size; nothing of a single one."""
    arms = bench.measured
    if len(bench.arms) < 2:
        return []
    names = ["arm", "batch", "training ms per triplet", "triplets/s", "pictures/s", "queries/s", "GFLOP per triplet", "GFLOP per query"]
    cells = [[*names, "tokens per query", "training peak MiB"]]
    for batch in sorted({work.batch for arm in arms for work in arm.works if work.kind in KINDS}):
        cells += [_summary(arm, batch) for arm in arms]
    one = [["arm", "LLM or text encoder", "trained", "query, cached ms", "query, from a file ms", "evaluation s", "of it ranking"]]
    one += [_of_an_arm(arm) for arm in arms]
    notes = [f"{arm.name} is not measured: {arm.refused}" for arm in bench.arms if arm.refused]
    works = [(work, bench.matrix_peak(arm)) for arm in arms for work in arm.works if not work.refused]
    doubtful = sum(bool(_disturbed(work, peak)) for work, peak in works)
    warning = [f"{doubtful} of {len(works)} times are doubtful (see their notes): run again on an idle machine"] if doubtful else []
    return [Table("arms side by side, whole model", one, notes), Table("arms side by side, by batch size", cells, warning)]


def _summary(arm: Arm, batch: int) -> list[str]:
    training, gallery, queries = (arm.find(kind, batch) for kind in KINDS)
    return [
        arm.name,
        str(batch),
        *([_ms(training.whole / batch), _number(_rate(training))] if training else [NONE] * 2),
        _number(_rate(gallery)) if gallery else NONE,
        _number(_rate(queries)) if queries else NONE,
        *(_number(sum(work.flops.values()) / 1e9 / batch) if work else NONE for work in (training, queries)),
        _number(queries.total_tokens()[0] / batch) if queries else NONE,
        _mib(max(training.peak.values())) if training and training.peak else NONE,
    ]


def _of_an_arm(arm: Arm) -> list[str]:
    latencies = [_ms(work.whole) if (work := arm.find(kind)) else NONE for kind in (LATENCY, COLD_LATENCY)]
    evaluation = _evaluation(arm)
    ends = [evaluation[0].cells[-1][1], evaluation[0].cells[-2][2]] if evaluation else [NONE, NONE]
    return [arm.name, f"{arm.parameters['language model']:,}", f"{arm.parameters['trained']:,}", *latencies, *ends]


# ---- numbers -------------------------------------------------------------------------------------------------------------------------


def _padding(real: float, computed: float) -> list[str]:
    return [f"{real:,.0f}", f"{computed:,.0f}", _percent(1 - real / computed)] if computed else [NONE] * 3


def _rates(flops: float, seconds: float, peak: float) -> list[str]:
    if not flops or not seconds:
        return [NONE] * 3
    rate = flops / seconds
    return [_number(flops / 1e9), _number(rate / 1e9), _percent(rate / peak)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.2f}" if seconds < 1 else f"{1000 * seconds:,.0f}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _mib(size: float) -> str:
    return f"{size / 2**20:,.0f}"


def _gib(size: float | None) -> str:
    return "unknown" if size is None else f"{size / 2**30:.1f} GiB"
