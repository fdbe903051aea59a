"""What the user typed: config files, the order of words, and packages that are missing."""

import subprocess
import sys

import pytest
import yaml

from cir_lightning import cli
from cir_lightning.arguments import find_config, resolve
from cir_lightning.cli import recipe_folder
from data_modules.errors import UserError

EMOJI = str(recipe_folder() / "emoji.yaml")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_flags_win_wherever_they_stand(capsys):
    words = ["--trainer.max_steps", "7", "--config", "emoji.yaml", "--model.lr=1", "-c=demo.yaml"]
    assert resolve(["fit", *words]) == [
        *("fit", "--config", EMOJI, "--config", str(recipe_folder() / "demo.yaml")),
        *("--trainer.max_steps", "7", "--model.lr=1"),
    ]
    assert cli.main(["fit", *words, "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["trainer"]["max_steps"] == 7


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK\x03\x04\xff\xfe", r"c\.yaml: not a text file; if it is a checkpoint, give it as --ckpt_path"),
        (b"trainer:\n  max_steps: 3\n model: x\n", r"c\.yaml, line 3: not YAML \(.*\); mend that line"),
        (b"model: \x00", r"c\.yaml: cannot be read \(.*\); mend the file"),
        (b"", r"c\.yaml: holds no keys"),
        (b"- 1", r"c\.yaml: holds no keys"),
        (b"model: {lr: 1}\ndata: {}\nmodel: {top: 3}\n", r"c\.yaml, line 3: not YAML \(the key 'model' comes twice\); mend that line"),
        (b"data: {init_args: {seed: 5}}", r"c\.yaml: data\.init_args\.seed=5 is not used, .*; set seed_everything instead"),
    ],
)
def test_a_config_file_that_is_none(tmp_path, content, words):
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(UserError, match=rf"^--config {words}"):
        find_config("c.yaml")


@pytest.mark.parametrize(
    ("content", "options", "file"),
    [
        ("trainer: {max_skeps: 3}", [], True),
        ("trainer: {max_skeps: 3}", ["--print_config", "--model.lr=1"], True),
        ("data: {class_path: }", ["--model.lr=1"], True),
        ("trainer: {max_steps: 3}", ["--model.lrr=1"], False),
        ("model: {lr: 2}", ["--model.lr=fast"], False),
    ],
)
def test_what_is_to_blame(tmp_path, capsys, content, options, file):
    """The file where it is refused by itself, otherwise an option."""
    (tmp_path / "c.yaml").write_text(content)
    assert cli.main(["fit", "--config=emoji.yaml", "--config=c.yaml", *options]) == 2
    assert capsys.readouterr().err.startswith(f"cir: --config {EMOJI}, c.yaml: ") is file


@pytest.mark.parametrize("command", ["fit", "estimate"])
@pytest.mark.parametrize(
    "key",
    [
        "model.encoder.init_args.backbone.init_args.lora.rank",
        "model.encoder.init_args.backbone.init_args.lora.targets",
        "model.encoder.init_args.backbone.init_args.layers",
        "model.encoder.init_args.connector.init_args.queries",
        "model.encoder.init_args.pooling",
        "model.encoder.init_args.query_template",
        "model.encoder.init_args.soft_prompt",
        "model.loss.temperature",
        "data.init_args.batch_size",
        "data",
    ],
)
def test_a_null_where_there_must_be_a_value(command, key, tmp_path, capsys):
    config: dict = {}
    part = config
    *way, last = key.split(".")
    for name in way:
        part = part.setdefault(name, {})
    part[last] = None
    (tmp_path / "null.yaml").write_text(yaml.safe_dump(config))
    for words in (["--config=null.yaml"], [f"--{key}=null"]):
        assert cli.main([command, "--config=emoji.yaml", *words]) == 2
        said = capsys.readouterr().err
        assert said.startswith("cir: ")
        assert said.count("\n") == 1
        assert last in said
        assert "Got value: None; cir COMMAND" in said or "expect one of" in said or "are required" in said


def test_a_null_where_it_means_something(capsys):
    words = ["--model.encoder.init_args.width=null", "--model.encoder.init_args.backbone.init_args.lora=null", "--model.chunk=null"]
    assert cli.main(["fit", "--config=emoji.yaml", *words, "--print_config"]) == 0
    model = yaml.safe_load(capsys.readouterr().out)["model"]
    arguments = model["encoder"]["init_args"]
    assert arguments["width"] is arguments["backbone"]["init_args"]["lora"] is model["chunk"] is None


@pytest.mark.parametrize("words", [["--data.seed", "5"], ["--data.seed=5"], ["--data.init_args.seed=5"]])
def test_there_is_one_seed(words):
    with pytest.raises(UserError, match=r"^--data\.(init_args\.)?seed is not used, .*; set seed_everything instead"):
        resolve(["fit", "--config", "emoji.yaml", *words])


@pytest.mark.parametrize("option", ["--config", "--config=", "--ckpt_path"])
def test_a_value_that_is_missing(option):
    with pytest.raises(UserError, match="needs a value"):
        resolve(["fit", option, *([] if "=" in option else ["--model.lr=1"])])


@pytest.mark.parametrize("package", ["torch", "lightning", "pandas", "filelock"])
def test_a_missing_package_is_named(package):
    code = f"import sys; sys.modules[{package!r}] = None; from cir_lightning.cli import main; sys.exit(main(['fit']))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stderr == f"cir: package {package} is missing; install what constraints.txt names, see the README\n"


def test_a_missing_package_without_a_name(monkeypatch, capsys):
    def fail(argv):
        raise ImportError("Please install gguf>=0.10.0 to load\n a checkpoint.")

    monkeypatch.setattr(cli, "_dispatch", fail)
    assert cli.main(["fit"]) == 2
    wanted = "cir: Please install gguf>=0.10.0 to load a checkpoint; install what constraints.txt names, see the README\n"
    assert capsys.readouterr().err == wanted
