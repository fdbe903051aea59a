"""``cir bench`` from the command to its files, on the tiny model."""

import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from fakes.runs import write_recipe
from fakes.tiny import TinyCIR, tiny_tokenizer
from PIL import Image
from test_front_door import refused

from cir_lightning.bench.machine import SIDE
from cir_lightning.bench.results import read
from cir_lightning.cli import main
from cir_lightning.module import CIRModule
from data_modules.stages import BACKWARD, LLM, stage


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with ``tiny.yaml`` and overlays; commands run in it."""
    folder = tmp_path_factory.mktemp("bench")
    write_recipe(folder)
    soft = {"class_path": "cir_lightning.prompt_pool.NoPrompt"}
    write_overlay(
        folder / "no-prompt.yaml", soft_prompt=soft, query_template="{image} Edit: {caption}:", target_template="{image} Picture:"
    )
    clip = {"class_path": "cir_lightning.backbones.text.HFTextEncoder", "init_args": {"model": "/nowhere/clip"}}
    write_overlay(folder / "clip.yaml", backbone=clip)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CIR_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        patch.setitem(SIDE, "cpu", 128)
        yield folder


def write_overlay(file, **encoder):
    file.write_text(yaml.safe_dump({"model": {"encoder": {"init_args": encoder}}}))


@pytest.fixture(scope="module")
def bench(folder):
    """What one run with everything leaves."""
    command = ["bench", "--config", "tiny.yaml", "--batch", "1,4,8,500", "--rounds", "2", "--out", "out", "--profile"]
    assert main([*command, "--arms", "no-prompt.yaml,clip.yaml"]) == 0
    return read(folder / "out" / "bench.json")


def test_every_work_at_every_batch_size(bench):
    arm = bench.arms[0]
    done = {(work.kind, work.batch) for work in arm.works if not work.refused}
    assert done == {
        *(("training", batch) for batch in (4, 8)),
        *((kind, batch) for kind in ("pictures", "gallery", "queries") for batch in (1, 4, 8)),
        ("ranking", len(tiny_queries())),
        ("query, features cached", 1),
        ("query, from a file", 1),
    }
    for work in arm.works:
        if not work.refused:
            assert len(work.seconds) == len(work.unobserved) == (8 if "query," in work.kind else 2)
            assert sum(work.shares().values()) == pytest.approx(1)
            assert min(min(one.values()) for one in work.seconds) >= 0


def tiny_queries():
    data = TinyCIR(".")
    data.setup()
    return data.distinct_queries("val")


def test_what_does_not_fit_is_said_and_the_rest_goes_on(bench):
    said = {(work.kind, work.batch): work.refused for work in bench.arms[0].works if work.refused}
    assert "the loss needs in-batch negatives" in said["training", 1]
    assert "do not fill one batch of 500" in said["training", 500]
    assert said["pictures", 500] == "there are only 40 pictures for a batch of 500"
    assert said["gallery", 500] == "there are only 40 gallery pictures for a batch of 500"
    assert said["queries", 500] == f"there are only {len(tiny_queries())} queries for a batch of 500"
    assert len(said) == 5


def test_stages_of_a_training_step(bench):
    work = bench.arms[0].find("training", 8)
    stages = {"read features", "Connector", "template", "caption", "LLM forward", "pooling", "loss", "gather", "backward", "optimizer"}
    assert set(work.stages) == {*stages, "other"}
    assert work.rows()["template and tokenising"] == ("template", "caption")
    assert work.rows()["other"] == ("other",)
    assert 0 < work.pictures <= 16
    assert work.flops[BACKWARD] > work.flops[LLM] > work.flops["loss"] > 0


def test_tokens_and_flops_of_the_gallery_are_those_of_its_prompt(bench):
    work = bench.arms[0].find("gallery", 8)
    length = 1 + 2 + 2 + len(tiny_tokenizer()(" Picture:", add_special_tokens=False)["input_ids"])  # <s>, Connector, soft prompt, words
    assert work.tokens == {LLM: (8 * length, 8 * length)}
    layer = 4 * 64 * 64 + 3 * 64 * 128  # attention and MLP of the tiny Llama
    adapters = 2 * (4 * (64 + 64) + 3 * (64 + 128))  # of rank 2
    attention = 2 * 2 * length * 64  # scores, and what they weigh, of one token
    assert work.flops[LLM] == pytest.approx(2 * 8 * length * (2 * (layer + adapters) + attention), rel=0.01)


def test_pictures_are_told_apart_from_what_is_cached(bench):
    arm = bench.arms[0]
    assert {"read and decode", "transform", "vision tower"} < set(arm.find("pictures", 8).stages)
    assert {"read and decode", "vision tower", "ranking"} < set(arm.find("query, from a file").stages)
    assert not {"read and decode", "transform", "vision tower"} & set(arm.find("training", 8).stages)
    page = Path("out/bench.md").read_text()
    assert "| vision tower (once per picture, ever) | [" in page


def test_arms_side_by_side(bench, capsys):
    names = [arm.name for arm in bench.arms]
    assert names == ["tiny.yaml", "tiny.yaml + no-prompt.yaml", "tiny.yaml + clip.yaml"]
    whole, without, clip = bench.arms
    assert "cannot read config.json of '/nowhere/clip'" in clip.refused
    assert not clip.works
    tokens = [arm.find("gallery", 8).total_tokens()[0] for arm in (whole, without)]
    assert tokens[0] - tokens[1] == 8 * 2  # the soft prompt
    page = Path("out/bench.md").read_text()
    assert f"Not measured: {clip.refused}" in page
    assert "### arms side by side, by batch size" in page
    assert whole.parameters["trained"] > without.parameters["trained"]


def test_a_trace_has_the_names_of_the_stages(bench):
    files = bench.arms[0].traces
    assert files == ["out/traces-0/training.trace.json.gz", "out/traces-0/gallery.trace.json.gz"]
    for file, wanted in zip(files, ({"backward", "optimizer", "loss"}, {"LLM forward", "pooling"}), strict=True):
        with gzip.open(file) as opened:
            assert wanted < {event["name"] for event in json.load(opened)["traceEvents"]}


def test_the_header(bench):
    header = bench.header
    assert {"cpu", "cores", "threads", "memory_bytes", "gpu", "python", "torch", "transformers", "lightning", "cir-lightning"} < set(header)
    assert header["command"].startswith("cir bench --config tiny.yaml --batch 1,4,8,500")
    arm = bench.arms[0]
    assert (arm.precision, arm.seed, arm.device, arm.batches) == ("32-true", 0, "cpu", {"training": 24, "evaluation": 24})
    assert yaml.safe_load(arm.config)["data"]["class_path"] == "fakes.tiny.TinyCIR"
    assert bench.matrix_peak(arm) == max(work.matrix for one in bench.arms for work in one.works) > 0


def test_a_picture_is_drawn(bench):
    with Image.open("out/bench.png") as image:
        assert image.width > 1000
        colours = {colour for _, colour in image.convert("RGB").getcolors(10**6)}
    assert {(0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73), (0x96, 0x96, 0x96)} < colours  # LLM, backward, vision tower


def test_a_run_with_itself(bench, capsys):
    assert main(["bench", "--compare", "out/bench.json", "out/bench.json"]) == 0
    shown = capsys.readouterr().out
    assert "differ" not in shown
    ratios = [line.split()[-1] for line in shown.splitlines() if line.startswith(("training", "gallery ")) and "not measured" not in line]
    assert len(ratios) > 20
    assert set(ratios) <= {"1.00", "-"}


def measured(name, *options):
    """The first arm of a quick run."""
    assert main(["bench", "--config", "tiny.yaml", "--rounds", "1", "--out", name, *options]) == 0
    return read(Path(name) / "bench.json").arms[0]


def test_the_trainers_flags_are_what_is_measured(folder, bench):
    arm = measured("chunks", "--batch", "8", "--model.chunk", "4", "--trainer.precision", "bf16-mixed")
    whole, chunked = bench.arms[0].find("training", 8), arm.find("training", 8)
    assert arm.precision == "bf16-mixed"
    assert chunked.total_tokens() == whole.total_tokens()
    assert chunked.tokens[BACKWARD] == chunked.tokens[LLM]  # every chunk is read once more
    assert chunked.flops[LLM] <= whole.flops[LLM]  # shorter rows: less attention
    assert chunked.flops[BACKWARD] > whole.flops[BACKWARD]
    for kind in ("gallery", "queries"):  # where autocast would not be seen by torch's counter
        assert arm.find(kind, 8).flops == pytest.approx(bench.arms[0].find(kind, 8).flops)


def test_pictures_that_are_looked_at_anew_are_in_the_step(folder, monkeypatch):
    setup = CIRModule.setup

    def augmenting(module, stage):
        module.data.augment = "crop"
        setup(module, stage)

    monkeypatch.setattr(CIRModule, "setup", augmenting)
    arm = measured("augmented", "--batch", "4")
    training = arm.find("training", 4)
    assert {"read and decode", "transform", "vision tower"} < set(training.stages)
    assert training.notes[0].startswith("pictures are read within the step; a run reads them ahead, in ")
    assert "vision tower" not in arm.find("gallery", 4).stages


def test_an_encoder_without_an_llm(folder):
    overlay = {"model": {"encoder": {"class_path": "cir_lightning.backbones.combiner.Combiner", "init_args": {"width": 8, "hidden": 8}}}}
    Path("late.yaml").write_text(yaml.safe_dump(overlay))
    arm = measured("late", "--config", "late.yaml", "--batch", "4")
    queries = arm.find("queries", 4)
    assert queries.tokens[LLM][0] >= 4 * 3
    assert queries.time(LLM) > 0  # although the sentences were read in the round before
    assert LLM not in arm.find("gallery", 4).stages


def test_out_of_memory_is_said_and_the_rest_goes_on(folder, monkeypatch):
    step = CIRModule.training_step

    def full(module, batch, number):
        if len(batch.captions) == 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(module, batch, number)

    monkeypatch.setattr(CIRModule, "training_step", full)
    arm = measured("full", "--batch", "4,8")
    assert {work.batch: work.refused for work in arm.works if work.kind == "training"} == {4: "", 8: "out of memory with 8 at once"}
    assert arm.find("gallery", 8)
    assert stage("a") is stage("b")  # nobody observes any more


def test_where_nothing_is_held_out(folder, monkeypatch):
    monkeypatch.setattr(TinyCIR, "evaluation_sets", lambda data, split: ())
    arm = measured("no-queries", "--batch", "4")
    assert arm.find("training", 4)
    said = {work.kind: work.refused for work in arm.works if work.refused}
    assert said == dict.fromkeys(("gallery", "queries"), "TinyCIR holds out no queries; hold some out")


BAD = [
    (["--batch", "8,x"], "--batch='8,x' is no list of batch sizes; write whole numbers from 1 on with commas between them: 1,8,32,128"),
    (["--batch", "0"], "--batch='0' is no list of batch sizes"),
    (["--rounds", "0"], "--rounds=0 is not possible; set it to 1 or more"),
    (["--rounds", "many"], "argument --rounds: invalid int value: 'many'; cir bench --help shows what there is"),
    (["--arms", "no-prompt.yaml,nothing.yaml"], "--config nothing.yaml: no such file, and no recipe of that name"),
    (["--model.nothing", "1"], "model.nothing"),
    (["--seed_everything", "-1"], "seed_everything=-1 is no seed"),
    (["--compare", "a.json", "b.json"], "--compare takes two files and nothing else, not --config tiny.yaml"),
    (["--arms", "clip.yaml", "--config", "clip.yaml"], "cannot read config.json of '/nowhere/clip'"),
]


@pytest.mark.parametrize(("options", "sentence"), BAD)
def test_bad_options_are_refused_before_anything_is_measured(options, sentence, folder, capsys):
    shutil.rmtree("refused", ignore_errors=True)
    assert sentence in refused(["bench", "--config", "tiny.yaml", "--out", "refused", *options], capsys)
    assert not list((folder / "refused").glob("*"))


def test_a_run_is_not_overwritten(bench, capsys):
    line = refused(["bench", "--config", "tiny.yaml", "--out", "out"], capsys)
    assert line == "cir: out/bench.json already holds a run; name another folder with --out"


def test_a_folder_that_cannot_be_written(folder, capsys):
    line = refused(["bench", "--config", "tiny.yaml", "--out", "tiny.yaml/out"], capsys)
    assert line == "cir: --out tiny.yaml/out: cannot be written (Not a directory); name another folder"


def test_the_configuration_can_be_printed(folder, capsys):
    assert main(["bench", "--config", "tiny.yaml", "--print_config"]) == 0
    assert "monitor: val/tiny/avg/R@1" in capsys.readouterr().out


NO_RESULTS = {
    "none.json": (None, "cannot be read (No such file or directory); name the bench.json of a run of cir bench"),
    "text.json": ("Hello", "not JSON; name the bench.json of a run of cir bench"),
    "list.json": ("[]", "its format is 'list', not 'cir-bench-1'"),
    "other.json": ('{"format": "cir-bench-0"}', "its format is 'cir-bench-0', not 'cir-bench-1'"),
    "cut.json": ('{"format": "cir-bench-1", "header": {}}', "damaged ('arms'); run cir bench again"),
    "odd.json": ('{"format": "cir-bench-1", "header": {}, "arms": [{"works": [{"kind": 1}, {"tokens": []}]}]}', "damaged ("),
}


@pytest.mark.parametrize("name", NO_RESULTS)
def test_files_that_are_no_results(name, bench, capsys):
    content, sentence = NO_RESULTS[name]
    if content is not None:
        Path(name).write_text(content)
    for pair in ([name, "out/bench.json"], ["out/bench.json", name]):
        assert f"--compare {name}: {sentence}" in refused(["bench", "--compare", *pair], capsys)


def test_comparing_is_light(bench):
    code = "import sys; from cir_lightning.cli import main; main(sys.argv[1:]); print(*sys.modules)"
    words = ["bench", "--compare", "out/bench.json", "out/bench.json"]
    run = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert run.stdout.startswith("A: out/bench.json")
    assert not {"torch", "lightning", "transformers", "numpy"} & set(run.stdout.splitlines()[-1].split())
