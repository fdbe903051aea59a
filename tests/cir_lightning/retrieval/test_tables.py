"""The results table on a page and on the terminal, compared with tables laid out by hand."""

import re
from dataclasses import replace

from cir_lightning.retrieval.report import Report, Row, averages
from cir_lightning.retrieval.tables import to_markdown, to_text

SEEN = {"group": "seen", "queries": 1200, "gallery": 3583, "unreachable": 0, "fingerprint": "00ff00ff00ff00ff", "protocol": "all pictures"}
HELD = {"group": "held-out", "queries": 300, "gallery": 512, "unreachable": 2, "fingerprint": "abababababababab"}
PLAIN = Report(
    benchmark="EmojiCIR",
    split="test",
    checkpoint="runs/emoji/best.ckpt",
    version="0.1.0",
    commit="6d59fbe",
    seed=0,
    rows=(
        Row("random", figures={"R@1": 0.027909572983533, "R@10": 0.3}, **SEEN),
        Row("CIR-LVLM (this run)", figures={"R@1": 40.004, "R@10": 90.0, "R_subset@1": 71.25}, **SEEN),
        Row("image | text", figures={"R@1": 40.0, "R@10": 12.5, "R_subset@1": 80.0}, **SEEN),
        Row("CIR-LVLM (this run)", figures={"R@1": 100 / 3}, **HELD),
    ),
    notes=("Two captions are empty.", "Ties count against the model."),
)

KEPT = {"protocol": "split-file gallery, reference kept", "average": "fiq/kept/avg"}
DRESS = {"group": "fiq/kept/dress", "queries": 2017, "gallery": 3817, "unreachable": 0, "fingerprint": "dddddddddddddddd", **KEPT}
SHIRT = {"group": "fiq/kept/shirt", "queries": 2038, "gallery": 6346, "unreachable": 1, "fingerprint": "5555555555555555", **KEPT}
CATEGORIES = (
    Row("random", figures={"R@10": 0.25, "R@50": 1.5, "mean": 0.875}, **DRESS),
    Row("SPRC (published)", figures={"R@10": 49.18, "R@50": 72.43}, source="Bai et al., ICLR 2024, table 1", **DRESS),
    Row("ours", figures={"R@10": 50.0, "R@50": 70.0, "mean": 60.0}, **DRESS),
    Row("random", figures={"R@10": 0.75, "R@50": 0.5, "mean": 0.625}, **SHIRT),
    Row("SPRC (published)", figures={"R@10": 55.64, "R@50": 73.89}, source="Bai et al., ICLR 2024, table 1", **SHIRT),
    Row("ours", figures={"R@10": 40.0, "R@50": 100.0, "mean": 70.0}, **SHIRT),
)
SIDE_BY_SIDE = replace(PLAIN, rows=(*CATEGORIES, *averages(CATEGORIES)), notes=())


def test_markdown():
    assert to_markdown(PLAIN) == (
        "# EmojiCIR, test\n\n"
        "Checkpoint: runs/emoji/best.ckpt; cir-lightning 0.1.0 (commit 6d59fbe); seed 0.\n\n"
        "## seen\n\n"
        "| Method | R@1 | R@10 | R_subset@1 |\n"
        "| --- | ---: | ---: | ---: |\n"
        "| random | 0.03 | 0.30 | - |\n"
        "| CIR-LVLM (this run) | **40.00** | **90.00** | 71.25 |\n"
        "| image \\| text | **40.00** | 12.50 | **80.00** |\n\n"
        "- Percent. Protocol: all pictures.\n"
        "- 3,583 gallery pictures; 1,200 queries, all reachable; fingerprint 00ff00ff00ff00ff.\n\n"
        "## held-out\n\n"
        "| Method | R@1 |\n"
        "| --- | ---: |\n"
        "| CIR-LVLM (this run) | 33.33 |\n\n"
        "- Percent. Protocol: not stated.\n"
        "- 512 gallery pictures; 300 queries, 2 of them unreachable (counted as misses); fingerprint abababababababab.\n\n"
        "**Note:** Two captions are empty.\n\n"
        "**Note:** Ties count against the model.\n"
    )


def test_text_has_the_same_figures_in_columns_and_no_markup():
    text = to_text(PLAIN)
    assert "*" not in text
    assert (
        "\n\nseen\n"
        "  Method                  R@1   R@10  R_subset@1\n"
        "  random                 0.03   0.30           -\n"
        "  CIR-LVLM (this run)   40.00  90.00       71.25\n"
        "  image | text          40.00  12.50       80.00\n"
        "  Percent. Protocol: all pictures.\n"
        "  3,583 gallery pictures; 1,200 queries, all reachable; fingerprint 00ff00ff00ff00ff.\n\n"
    ) in text
    assert text.endswith("\n\nNote: Two captions are empty.\n\nNote: Ties count against the model.\n")
    assert set(re.findall(r"\d+\.\d\d", text)) == set(re.findall(r"\d+\.\d\d", to_markdown(PLAIN)))


def test_sets_of_an_average_stand_side_by_side_with_it():
    assert to_text(SIDE_BY_SIDE).split("\n\n", 1)[1] == (
        "fiq/kept\n"
        "                            dress                 shirt                   avg\n"
        "  Method              R@10   R@50   mean    R@10    R@50   mean    R@10   R@50   mean\n"
        "  random              0.25   1.50   0.88    0.75    0.50   0.62    0.50   1.00   0.75\n"
        "  SPRC (published)   49.18  72.43      -   55.64   73.89      -   52.41  73.16      -\n"
        "  ours               50.00  70.00  60.00   40.00  100.00  70.00   45.00  85.00  65.00\n"
        "  Percent. Protocol: split-file gallery, reference kept.\n"
        "  dress: 3,817 gallery pictures; 2,017 queries, all reachable; fingerprint dddddddddddddddd.\n"
        "  shirt: 6,346 gallery pictures; 2,038 queries, 1 of them unreachable (counted as misses); fingerprint 5555555555555555.\n"
        "  SPRC (published): Bai et al., ICLR 2024, table 1.\n"
    )


def test_sets_of_an_average_in_markdown():
    text = to_markdown(replace(SIDE_BY_SIDE, rows=tuple(row for row in SIDE_BY_SIDE.rows if row.method != "random")))
    assert (
        "## fiq/kept\n\n"
        "| Method | dress R@10 | dress R@50 | dress mean | shirt R@10 | shirt R@50 | shirt mean | avg R@10 | avg R@50 | avg mean |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        "| SPRC (published) | 49.18 | **72.43** | - | **55.64** | 73.89 | - | **52.41** | 73.16 | - |\n"
        "| ours | **50.00** | 70.00 | 60.00 | 40.00 | **100.00** | 70.00 | 45.00 | **85.00** | 65.00 |\n\n"
        "- Percent. Protocol: split-file gallery, reference kept.\n"
    ) in text


def test_blocks_that_are_too_wide_stand_below_each_other():
    wide = [
        Row("ours", "c/a", {f"R@{k}": float(k) for k in range(1, 13)}, 2, 3, 0, "f1", average="c/avg"),
        Row("ours", "c/b", {f"R@{k}": float(-k) for k in range(1, 13)}, 2, 3, 0, "f2", average="c/avg"),
    ]
    grid = to_text(replace(PLAIN, rows=tuple(wide))).split("\n\n")[1].splitlines()[:7]
    assert [line.split()[:3] for line in grid] == [
        ["c"],
        ["a"],
        ["Method", "R@1", "R@2"],
        ["ours", "1.00", "2.00"],
        ["b"],
        ["Method", "R@1", "R@2"],
        ["ours", "-1.00", "-2.00"],
    ]
    assert max(map(len, grid)) <= 140


def test_a_method_without_rows_on_some_sets_has_no_figures_there():
    rows = [row for row in CATEGORIES if row.method != "random"]
    half = replace(CATEGORIES[0], method="dress only")
    text = to_text(replace(PLAIN, rows=(half, *rows, *averages([half, *rows]))))
    assert re.search(r"dress only +0\.25 +1\.50 +0\.88( +-){6}\n", text)


def test_an_average_may_have_the_name_of_the_sets_folder():
    rows = [replace(row, average="fiq/kept") for row in CATEGORIES]
    lines = to_text(replace(PLAIN, rows=(*rows, *averages(rows)))).splitlines()
    assert lines[3] == "fiq/kept"
    assert lines[4].split() == ["dress", "shirt", "average"]


def test_an_average_of_sets_without_a_common_folder_names_its_table():
    rows = [replace(row, average="both", group=row.group.split("/")[-1]) for row in CATEGORIES]
    lines = to_text(replace(PLAIN, rows=(*rows, *averages(rows)))).splitlines()
    assert lines[3] == "both"
    assert lines[4].split() == ["dress", "shirt", "both"]


def test_two_published_figures_of_one_method_are_two_lines():
    again = replace(CATEGORIES[1], source="re-printed elsewhere", figures={"R@10": 48.0})
    text = to_text(replace(PLAIN, rows=(CATEGORIES[1], again)))
    assert text.count("  SPRC (published)  ") == 2
    assert "  SPRC (published): Bai et al., ICLR 2024, table 1.\n  SPRC (published): re-printed elsewhere.\n" in text


def test_missing_pictures_are_counted_beside_the_figures():
    row = replace(PLAIN.rows[0], skipped_queries=3, skipped_pictures=1012)
    sentence = (
        "3,583 gallery pictures (1,012 more are missing); 1,200 queries (3 more were skipped), all reachable; fingerprint 00ff00ff00ff00ff."
    )
    assert sentence in to_text(replace(PLAIN, rows=(row,)))
    assert sentence in to_markdown(replace(PLAIN, rows=(row,)))


def test_different_protocols_never_share_a_table():
    other = replace(PLAIN.rows[0], method="other gallery", fingerprint="", gallery=10)
    text = to_markdown(replace(PLAIN, rows=(*PLAIN.rows, other)))
    assert text.count("## seen") == 2
    assert (
        "| other gallery | 0.03 | 0.30 |\n\n"
        "- Percent. Protocol: all pictures.\n- 10 gallery pictures; 1,200 queries, all reachable; fingerprint not stated." in text
    )


def test_unknown_origin():
    assert "Checkpoint: none; cir-lightning 0.1.0; seed 0." in to_text(replace(PLAIN, checkpoint="", commit="", notes=()))


def test_papers_tables_fit_140_columns():
    """Fashion-IQ has three categories and mean, GeneCIS four tasks; each with an average."""
    row = Row("reference image only", "", {}, 2038, 15436, 0, "0123456789abcdef", "split-file gallery, reference removed", "x/avg")
    fashion = [
        replace(row, group=f"x/{name}", figures=dict.fromkeys(("R@10", "R@50", "mean"), 100.0)) for name in ("dress", "shirt", "toptee")
    ]
    tasks = ("focus_attribute", "change_attribute", "focus_object", "change_object")
    genecis = [replace(row, group=f"x/{name}", figures=dict.fromkeys(("R@1", "R@2", "R@3"), 99.0)) for name in tasks]
    for rows in (fashion, genecis):
        text = to_text(replace(PLAIN, rows=(*rows, *averages(rows))))
        assert max(map(len, text.splitlines())) <= 140
