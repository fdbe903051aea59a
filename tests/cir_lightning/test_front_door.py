"""The command line: light where it can be, one sentence for every mistake, and the whole way from fit to predict."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import yaml
from fakes.runs import tiny_run
from fakes.tiny import TinyCIR

from cir_lightning import __version__
from cir_lightning.cli import COMMANDS, main, recipe_folder, recipes
from cir_lightning.module import CIRModule

RECIPES = recipes()
COMPLETE = [recipe for recipe in RECIPES if "seed_everything" in (recipe_folder() / recipe).read_text()]
OVERLAYS_OF = "emoji.yaml"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """A mistake in a test must not train in the source tree; recipes are found from any folder."""
    monkeypatch.chdir(tmp_path)


LIGHT = [
    ("--help", "usage: cir COMMAND"),
    ("cache --help", "usage: cir cache build"),
    ("cache info", "MB of patch features"),
    ("data --help", "usage: cir data"),
    ("convert --help", "usage: cir convert"),
    ("--version", f"cir-lightning {__version__}"),
    ("estimate --help", "usage: cir estimate"),
    ("bench --help", "usage: cir bench"),
    ("export --help", "usage: cir export"),
    ("analyze --help", "usage: cir analyze failures"),
]


@pytest.mark.parametrize(("option", "shown"), LIGHT)
def test_help_and_version_are_light(option, shown):
    code = "import sys; from cir_lightning.cli import main; rc = main(sys.argv[1:]); print(*sys.modules); sys.exit(rc)"
    run = subprocess.run([sys.executable, "-c", code, *option.split()], capture_output=True, text=True, check=False)
    *text, modules = run.stdout.splitlines()
    assert run.returncode == 0
    assert shown in "\n".join(text)
    assert not {"torch", "lightning", "transformers", "jsonargparse", "numpy"} & set(modules.split())


def test_a_config_is_read_without_what_only_training_needs():
    code = "import sys; from cir_lightning.cli import main; main(sys.argv[1:]); print(*sys.modules)"
    arguments = [sys.executable, "-c", code, "fit", "--config", "emoji.yaml", "--print_config"]
    run = subprocess.run(arguments, capture_output=True, text=True, check=True)
    modules = {name.partition(".")[0] for name in run.stdout.splitlines()[-1].split()}
    assert "lightning" in modules
    assert not {"peft", "bitsandbytes", "tensorboard", "accelerate", "sklearn", "scipy"} & modules


def test_a_reader_that_has_ended_is_no_traceback(tmp_path):
    (tmp_path / "many.yaml").write_text("configs: [emoji.yaml]\nseeds: [0]\narms: {a: []}\n")
    run = f"{sys.executable} -m cir_lightning.cli study status {tmp_path}/many.yaml --root {tmp_path} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", run], capture_output=True, text=True, check=False, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    assert (done.returncode, done.stderr) == (141, "")


def test_help_names_commands_and_recipes(capsys):
    assert main([]) == 0
    bare = capsys.readouterr().out
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == bare
    assert all(f"cir {command} " in bare for command in COMMANDS)
    assert RECIPES
    assert all(recipe in bare for recipe in RECIPES)


def refused(arguments, capsys):
    """The sentence on stderr with which a command leaves with exit code 2."""
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    (line,) = [line for line in error.splitlines() if line.startswith("cir: ")]
    return line


def test_an_unknown_command(capsys):
    assert refused(["fitt"], capsys) == f"cir: unknown command 'fitt'; commands are {', '.join(COMMANDS)}"


def test_the_process_leaves_with_2():
    run = subprocess.run([sys.executable, "-m", "cir_lightning.cli", "fitt"], capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stderr.startswith("cir: unknown command")
    assert run.stdout == ""


def test_one_of_several_processes_leaves_before_python_ends(tmp_path):
    code = f"""
import atexit, torch.distributed as dist
from cir_lightning import cli
dist.init_process_group("gloo", init_method="file://{tmp_path}/meet", rank=0, world_size=1)
atexit.register(print, "Python ended")
cli.main = lambda: print("done") or 130
cli.entry()
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (130, "done\n"), run.stderr


@pytest.mark.parametrize("option", [["--config", "emojj.yaml"], ["--config=emojj.yaml"], ["-c", "emojj.yaml"]])
def test_an_unknown_recipe_names_the_recipes(option, capsys):
    line = refused(["fit", *option], capsys)
    assert "emojj.yaml" in line
    assert line.endswith(f"recipes are {', '.join(RECIPES)}")


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_parses(recipe, capsys):
    configs = [recipe] if recipe in COMPLETE else [OVERLAYS_OF, recipe]
    assert main(["fit", *(word for config in configs for word in ("--config", config)), "--print_config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    asked = yaml.safe_load((recipe_folder() / recipe).read_text())
    for key, value in leaves(asked):
        assert dict(leaves(printed))[key] == value, key


@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if recipe.startswith("backbones/")])
def test_no_backbone_takes_the_mini_models_picture_size_over(recipe, capsys):
    assert main(["fit", "--config=fashioniq.yaml", f"--config={recipe}", "--print_config"]) == 0
    backbone = yaml.safe_load(capsys.readouterr().out)["model"]["encoder"]["init_args"]["backbone"]["init_args"]
    assert backbone["image_size"] in {None, 336, 448}


@pytest.mark.parametrize("recipe", COMPLETE)
def test_the_combiner_goes_over_every_recipe(recipe, capsys):
    assert main(["fit", "--config", recipe, "--config", "combiner.yaml", "--print_config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["model"]["encoder"]["class_path"] == "cir_lightning.backbones.combiner.Combiner"
    assert printed["data"]["class_path"] == yaml.safe_load((recipe_folder() / recipe).read_text())["data"]["class_path"]
    assert printed["data"]["init_args"]["batch_size"] == 256


def test_the_combiner_takes_nothing_over_from_the_demo(capsys):
    assert main(["fit", *(f"--config={name}.yaml" for name in ("emoji", "demo", "combiner")), "--print_config"]) == 0
    printed = dict(leaves(yaml.safe_load(capsys.readouterr().out)))
    assert (printed[".model.init_from"], printed[".model.loss.memory"]) == (None, 0)


def leaves(tree, path=""):
    """Paths without ``init_args``, and plain values; of lists of classes the names only."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, path if key == "init_args" else f"{path}.{key}")
    elif isinstance(tree, list) and tree and isinstance(tree[0], dict):
        yield path, [entry["class_path"] for entry in tree]
    else:
        yield path, tree


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model.nonsense", "1"], "nonsense"),
        (["--trainer.maxsteps", "1"], "maxsteps"),
        (["--model.encoder.init_args.widht=1"], "widht"),
        (["--data.init_args.batch_sise=3"], "batch_sise"),
    ],
)
def test_a_wrong_key_is_named(arguments, words, capsys):
    assert words in refused(["fit", "--config", "emoji.yaml", *arguments], capsys)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model.lr", "fast"], "fast"),
        (["--model.encoder.init_args.pooling=first"], "first"),
        (["--model.encoder.init_args.soft_prompt.init_args.chosen=99"], "chosen=99 of size=45"),
        (["--model.encoder.init_args.query_template={image}"], "has no hole {caption}"),
        (["--data.batch_size=0"], "data.batch_size is 0; set --data.batch_size to 1 or more"),
        (["--seed_everything=-3"], "cir: seed_everything=-3 is no seed; give a whole number from 0 to 4294967295"),
        (["--seed_everything=true"], "cir: Parser key \"seed_everything\": Expected a <class 'int'>. Got value: True; cir COMMAND --help"),
        (["--trainer.strategy=nonsense"], "cir: the trainer cannot be made: You selected an invalid strategy name"),
        (
            ["--trainer.limit_val_batches=1"],
            "cir: trainer.limit_val_batches=1: a gallery must be whole; leave it out, and use --trainer.max",
        ),
        (["--trainer.limit_test_batches=0.5"], "trainer.limit_test_batches=0.5: a gallery must be whole"),
        (["--trainer.fast_dev_run=true"], "trainer.fast_dev_run=True: a gallery must be whole"),
        (["--trainer.overfit_batches=2"], "trainer.overfit_batches=2: a gallery must be whole"),
        (["--trainer.max_steps=0"], "cir: trainer.max_steps=0 would train nothing; set it to 1 or more"),
    ],
)
def test_a_wrong_value_is_named(arguments, words, capsys):
    assert words in refused(["fit", "--config", "emoji.yaml", *arguments], capsys)


@pytest.mark.parametrize("arguments", [["test"], ["predict"], ["fit", "--ckpt_path", "last"], ["test", "--ckpt_path", "last"]])
def test_a_command_without_a_config(arguments, capsys):
    remedy = f"; give --config RECIPE (recipes are {', '.join(RECIPES)}) or --ckpt_path runs/NAME"
    assert refused(arguments, capsys).endswith(remedy)


def test_checkpoints_that_are_none(tmp_path, capsys):
    assert "no such file; train one with cir fit" in refused(["test", "--ckpt_path", str(tmp_path / "a.ckpt")], capsys)
    (tmp_path / "a.ckpt").write_bytes(b"garbage")
    assert "not a readable checkpoint" in refused(["test", "--ckpt_path", str(tmp_path / "a.ckpt")], capsys)
    assert "a.ckpt" in refused(["test", "--ckpt_path", str(tmp_path / "b.ckpt")], capsys)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A folder with ``tiny.yaml`` and the finished run ``run``; commands run in it."""
    with tiny_run(tmp_path_factory.mktemp("front door")) as folder:
        yield folder


def rows(folder):
    return json.loads((folder / "run" / "test" / "results.json").read_text())["rows"]


def test_fit_leaves_a_run_folder(fitted):
    run = fitted / "run"
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["encoder"]["init_args"]["width"] == 16
    assert (run / "best.ckpt").exists() is False
    assert {path.name for path in (run / "val").iterdir()} == {"tiny-colour.png", "tiny-shape.png"}
    (log,) = (run / "tensorboard").glob("events.out.tfevents.*")
    assert b"val/tiny/avg/R@1" in log.read_bytes()


def test_test_needs_only_the_run_folder(fitted, capsys):
    assert main(["test", "--ckpt_path", str(fitted / "run")]) == 0
    out = capsys.readouterr().out
    methods = [row["method"] for row in rows(fitted) if row["group"] == "tiny/colour"]
    assert methods == ["random", "reference image only", "caption only", "sum of both", "CIR-LVLM"]
    assert set(rows(fitted)[0]["figures"]) == {"R@1", "R@5", "R@10", "R_subset@1", "R_subset@2", "R_subset@3"}
    assert "sum of both" in out
    assert {path.name for path in (fitted / "run" / "test").glob("*.png")} == {"tiny-colour.png", "tiny-shape.png"}


def test_a_flag_beats_the_checkpoints_config(fitted):
    assert main(["test", "--ckpt_path", str(fitted / "run" / "checkpoints" / "last.ckpt"), "--data.recall_at=[1,3]"]) == 0
    assert {"R@1", "R@3"} < set(rows(fitted)[0]["figures"])
    assert "R@5" not in rows(fitted)[0]["figures"]


def test_predict_writes_every_query(fitted):
    assert main(["predict", "--ckpt_path", str(fitted / "run"), "--model.top", "3"]) == 0
    lines = [json.loads(line) for line in (fitted / "run" / "predictions.jsonl").read_text().splitlines()]
    data = TinyCIR(str(fitted))
    data.setup()
    assert len(lines) == sum(len(evaluation.queries) for evaluation in data.evaluation_sets("test"))
    assert all(len(line["names"]) == 3 and line["reference"] not in line["names"] for line in lines)


def test_a_refused_run_can_be_started_again(fitted, tmp_path, capsys):
    """Nothing is left of it."""
    options = ["--trainer.default_root_dir", str(tmp_path / "refused"), "--data.init_args.batch_size", "1"]
    for _ in range(2):
        assert "the loss needs in-batch negatives" in refused(["fit", "--config", str(fitted / "tiny.yaml"), *options], capsys)
    options[-2:] = ["--model.monitor", "val/tiny/avg/mean"]
    line = refused(["fit", "--config", str(fitted / "tiny.yaml"), *options], capsys)
    assert line.startswith("cir: model.monitor='val/tiny/avg/mean' is no figure of this benchmark; choose one of val/tiny/avg/R@1, val/")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "needs_training"),
    [
        (["test"], True),
        (["test", "--model.yardsticks", "false"], False),
        (["validate", "--model.yardsticks", "false"], False),
        (["predict"], False),
    ],
)
def test_only_yardsticks_need_the_training_pictures_of_a_trained_model(command, needs_training, fitted, monkeypatch):
    seen = []
    see = CIRModule._see
    monkeypatch.setattr(CIRModule, "_see", lambda module, positions: (seen.append(positions), see(module, positions)))
    shutil.rmtree(fitted / "run" / "test", ignore_errors=True)
    assert main([*command, "--ckpt_path", str(fitted / "run")]) == 0
    data = TinyCIR(str(fitted))
    data.setup()
    wanted = data.evaluation_pictures("val" if command[0] == "validate" else "test")
    assert seen == [sorted({*wanted, *data.train_pictures()}) if needs_training else wanted]
    if command[0] == "test":
        assert ("random" in {row["method"] for row in rows(fitted)}) is needs_training


def test_a_k_beyond_the_gallery_is_refused_before_training(fitted, tmp_path, capsys):
    options = ["--trainer.default_root_dir", str(tmp_path / "refused"), "--data.recall_at=[1,50]"]
    assert "R@50 of a gallery of 39 pictures" in refused(["fit", "--config", str(fitted / "tiny.yaml"), *options], capsys)
    options[-1] = "--trainer.callbacks.batch_size=99"
    line = refused(["fit", "--config", str(fitted / "tiny.yaml"), *options], capsys)
    assert line.startswith("cir: TitleAlignment.batch_size=99 is more than the ")
    assert list(tmp_path.iterdir()) == []


def test_the_progress_bar_can_be_switched_off(fitted):
    assert main(["test", "--ckpt_path", str(fitted / "run"), "--trainer.enable_progress_bar", "false"]) == 0


def test_a_run_folder_that_exists_is_kept(fitted, capsys):
    before = {path: path.stat().st_mtime_ns for path in (fitted / "run").rglob("*.ckpt")}
    line = refused(["fit", "--config", str(fitted / "tiny.yaml")], capsys)
    assert f"run folder {fitted / 'run'} already holds a run" in line
    assert {path: path.stat().st_mtime_ns for path in (fitted / "run").rglob("*.ckpt")} == before


def test_going_on_with_last(fitted, tmp_path, capsys):
    shutil.copytree(fitted / "run", tmp_path / "run")
    options = ["--trainer.default_root_dir", str(tmp_path / "run"), "--ckpt_path", "last"]
    assert main(["fit", "--config", str(fitted / "tiny.yaml"), *options, "--trainer.max_steps", "4"]) == 0
    from cir_lightning.checkpoint import read_checkpoint

    assert read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] == 4
    assert read_checkpoint(fitted / "run" / "checkpoints" / "last.ckpt")["global_step"] == 2


def test_fit_goes_on_with_the_last_checkpoint_alone(fitted, capsys):
    run = fitted / "run"
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    best = str(run / "checkpoints" / "best.ckpt")
    line = refused(["fit", "--ckpt_path", best], capsys)
    assert "training cannot go on with weights alone; use last.ckpt, or start a new run from them with --model.init_from" in line
    for name in (run, run / "checkpoints"):
        line = refused(["fit", "--ckpt_path", str(name)], capsys)
        assert "last.ckpt: 2 steps are done already, and trainer.max_steps is 2; set it higher to go on, or score" in line
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_results_without_a_checkpoint_lie_apart(fitted, tmp_path, capsys):
    config = ["--config", str(fitted / "tiny.yaml"), "--trainer.default_root_dir", str(tmp_path / "run")]
    assert "cir predict would rank with random weights; give --ckpt_path runs/NAME" in refused(["predict", *config], capsys)
    assert main(["test", *config]) == 0
    assert main(["test", *config, "--model.init_from", str(fitted / "run")]) == 0
    assert main(["predict", *config, "--model.init_from", str(fitted / "run")]) == 0
    read = {name: json.loads((tmp_path / "run" / name / "test" / "results.json").read_text()) for name in ("untrained", "init_from")}
    assert read["untrained"]["checkpoint"] == "none (untrained)"
    assert read["init_from"]["checkpoint"] == str(fitted / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"untrained", "init_from"}
    assert (tmp_path / "run" / "init_from" / "predictions.jsonl").is_file()


LORA = "model.encoder.init_args.backbone.init_args.lora"


def test_lora_can_be_left_out(fitted, tmp_path, capsys):
    overlay = {"model": {"encoder": {"init_args": {"backbone": {"init_args": {"lora": None}}}}}}
    (tmp_path / "frozen.yaml").write_text(yaml.safe_dump(overlay))
    for words in (["--config", "frozen.yaml"], [f"--{LORA}=null"], [f"--{LORA}", "null"], [f"--{LORA}=None"]):
        assert main(["fit", "--config", str(fitted / "tiny.yaml"), *words, "--print_config"]) == 0
        backbone = yaml.safe_load(capsys.readouterr().out)["model"]["encoder"]["init_args"]["backbone"]
        assert backbone["init_args"]["lora"] is None


def test_a_package_that_is_missing_late(fitted, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "peft", None)
    options = ["--trainer.default_root_dir", str(tmp_path / "run")]
    assert "package peft is missing" in refused(["fit", "--config", str(fitted / "tiny.yaml"), *options], capsys)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_a_checkpoint_that_goes_on(fitted, tmp_path, capsys):
    options = ["--config", str(fitted / "tiny.yaml"), "--trainer.default_root_dir", str(tmp_path / "run"), "--trainer.max_steps"]
    command = [sys.executable, "-m", "cir_lightning.cli", "fit", *options, "100000", "--trainer.val_check_interval=1000"]
    heard = partial(signal.signal, signal.SIGINT, signal.default_int_handler)  # a shell's background processes ignore Ctrl-C
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=heard)
    while process.poll() is None and not (tmp_path / "run" / "config.yaml").exists():
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "go on with the same command and --ckpt_path last" in out
    assert "Traceback" not in out
    assert "weights_only" not in out
    assert "steps are done already" in refused(["fit", *options, "1", "--ckpt_path", "last"], capsys)


def test_another_models_checkpoint_is_refused(fitted, capsys):
    checkpoint = ["--ckpt_path", str(fitted / "run")]
    config = ["--config", str(fitted / "tiny.yaml")]
    assert "another shape" in refused(["test", *config, *checkpoint, "--model.encoder.init_args.width", "8"], capsys)
    other = ["--model.encoder.init_args.soft_prompt.class_path=cir_lightning.prompt_pool.NoPrompt"]
    assert "unknown: encoder.soft_prompt.keys" in refused(["test", *config, *checkpoint, *other], capsys)


def test_a_k_beyond_the_gallery(fitted, capsys):
    assert "R@50 of a gallery of 39 pictures without the reference" in refused(
        ["test", "--ckpt_path", str(fitted / "run"), "--data.recall_at=[1,50]"], capsys
    )
