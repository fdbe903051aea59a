"""What a stranger's checkpoint, config or picture can do: be read, or be refused."""

import os
import pickle
import zipfile

import pytest
import torch
import yaml
from fakes.runs import tiny_run
from lightning.pytorch.loggers import CSVLogger

from cir_lightning.api import load
from cir_lightning.checkpoint import read_checkpoint
from cir_lightning.cli import main
from cir_lightning.convert import Source
from data_modules.errors import UserError


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with ``tiny.yaml`` and the finished run ``run``."""
    with tiny_run(tmp_path_factory.mktemp("security")) as folder:
        yield folder


class Trap:
    """Runs a command when it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


def write_trap(path, trace, kind):
    content = {"config": Trap(trace), "state_dict": {}, "tower": "tiny", "pytorch-lightning_version": "2.6.6"}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")


WAYS = [
    "test --ckpt_path {file}",
    "validate --ckpt_path {file}",
    "predict --config {recipe} --ckpt_path {file}",
    "fit --ckpt_path {file}",
    "fit --config {recipe} --ckpt_path {file} --trainer.default_root_dir {new}",
    "fit --config {recipe} --model.init_from {file} --trainer.default_root_dir {new}",
    "estimate --ckpt_path {file}",
    "bench --ckpt_path {file}",
    "export {file} {new}",
]


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_code_in_a_checkpoint_is_run_by_no_command(trained, tmp_path, kind, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # torch's own way to switch the protection off
    file, trace = tmp_path / "last.ckpt", tmp_path / "was here"
    write_trap(file, trace.as_posix().replace(" ", "\\ "), kind)
    for way in WAYS:
        words = way.format(file=file, recipe=trained / "tiny.yaml", new=tmp_path / "new").split()
        assert main(words) == 2, way
        said = capsys.readouterr().err
        assert not trace.exists(), way
        assert "Traceback" not in said, way
    with pytest.raises(UserError, match=r"last\.ckpt: not a readable checkpoint"):
        load(file)
    assert not trace.exists()
    pickle.loads(file.read_bytes()) if kind == "pickle" else torch.load(file, weights_only=False)  # the trap does work
    assert trace.exists()


@pytest.mark.parametrize("command", ["fit", "test"])
def test_the_checkpoint_before_the_last_is_no_way_around(tmp_path, command, capsys):
    folder, trace = tmp_path / "run" / "checkpoints", tmp_path / "trace"
    folder.mkdir(parents=True)
    (folder / "last.ckpt").write_bytes(b"damaged")
    write_trap(folder / "previous.ckpt", trace, "zip")
    assert main([command, "--ckpt_path", str(folder / "last.ckpt")]) == 2
    assert "previous.ckpt: not a readable checkpoint" in capsys.readouterr().err
    assert not trace.exists()


def test_what_lightning_finds_by_itself_in_a_slurm_job_is_read_as_ours(trained, tmp_path, monkeypatch, capsys):
    trace = tmp_path / "trace"
    write_trap(tmp_path / "hpc_ckpt_1.ckpt", trace, "zip")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.setattr("lightning.pytorch.plugins.environments.SLURMEnvironment.detect", lambda: True)
    monkeypatch.setenv("SLURM_NTASKS", "1")
    main(["fit", "--config", str(trained / "tiny.yaml"), "--trainer.default_root_dir", str(tmp_path), "--trainer.max_steps", "1"])
    capsys.readouterr()
    assert not trace.exists()


def test_weights_that_are_converted_run_nothing(tmp_path):
    write_trap(tmp_path / "pytorch_model.bin", tmp_path / "trace", "zip")
    with pytest.raises(UserError, match=r"pytorch_model\.bin holds more than tensors and is not opened"):
        Source(tmp_path)
    assert not (tmp_path / "trace").exists()


def test_a_checkpoint_does_not_unpack_into_more_than_it_is(trained, tmp_path):
    """Torch stores; only a stranger compresses, and what is compressed may be a thousand times as large as it looks."""
    with zipfile.ZipFile(trained / "run" / "checkpoints" / "best.ckpt") as whole, zipfile.ZipFile(tmp_path / "a.ckpt", "w") as packed:
        for part in whole.infolist():
            packed.writestr(part.filename, whole.read(part), zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match=r"a\.ckpt: not a readable checkpoint"):
        read_checkpoint(tmp_path / "a.ckpt")


APPLY = "!!python/object/apply:os.system ['touch {trace}']"


def test_yaml_makes_no_objects(trained, tmp_path, capsys):
    trace = tmp_path / "trace"
    evil = APPLY.format(trace=trace)
    (tmp_path / "evil.yaml").write_text(f"model:\n  encoder: {evil}\n")
    assert main(["fit", "--config", str(trained / "tiny.yaml"), "--config", str(tmp_path / "evil.yaml")]) == 2
    assert "evil.yaml, line 2: not YAML" in capsys.readouterr().err
    assert main(["fit", "--config", str(trained / "tiny.yaml"), "--model.encoder.init_args.query_template", evil]) == 2
    assert main(["fit", "--config", str(trained / "tiny.yaml"), "--model.loss", evil]) == 2
    assert "Traceback" not in capsys.readouterr().err
    checkpoint = changed(trained, tmp_path, text=lambda text: text + f"\nx: {evil}\n")
    assert main(["test", "--ckpt_path", str(checkpoint)]) == 2
    assert "the config in this file is damaged" in capsys.readouterr().err
    with pytest.raises(UserError, match="the config in this file is damaged"):
        load(checkpoint)
    assert not trace.exists()


def changed(trained, folder, change=None, text=None):
    """A copy of the run's best checkpoint whose config is another one."""
    checkpoint = torch.load(trained / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    config = yaml.safe_load(checkpoint["config"])
    if change:
        change(config)
    checkpoint["config"] = (text or str)(yaml.safe_dump(config))
    torch.save(checkpoint, folder / "changed.ckpt")
    return folder / "changed.ckpt"


def stranger(config):
    config["model"]["encoder"] = {"class_path": "stranger.Encoder"}


def stranger_within(config):
    config["model"]["encoder"]["init_args"]["connector"] = "stranger.Connector"


def any_function(config):
    callback = {"class_path": "lightning.pytorch.callbacks.LambdaCallback", "init_args": {"setup": "stranger.function"}}
    config["trainer"]["callbacks"].append(callback)


def own_function(config):
    callback = {"class_path": "lightning.pytorch.callbacks.LambdaCallback", "init_args": {"setup": "cir_lightning.stops.requeue"}}
    config["trainer"]["callbacks"].append(callback)


def logger(config):
    config["trainer"]["logger"] = {"class_path": "stranger.Logger"}


@pytest.fixture
def module_of_a_stranger(tmp_path, monkeypatch):
    """``stranger.py``, which can be imported; the file that exists once it was."""
    (tmp_path / "stranger.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\ndef function(*_, **__): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "imported"


@pytest.mark.parametrize("change", [stranger, stranger_within, any_function, own_function, logger])
def test_a_checkpoints_config_names_no_code_but_ours(trained, tmp_path, change, module_of_a_stranger, capsys):
    checkpoint = changed(trained, tmp_path, change)
    assert main(["test", "--ckpt_path", str(checkpoint)]) == 2
    said = capsys.readouterr().err
    assert "cir: the config that comes with the weights names " in said, said
    assert "CIR_TRUST" in said
    assert not module_of_a_stranger.exists()
    main(["test", "--config", str(trained / "run" / "config.yaml"), "--ckpt_path", str(checkpoint)])
    assert not module_of_a_stranger.exists()


@pytest.mark.parametrize("change", [stranger, stranger_within])
def test_neither_in_the_api_nor_in_an_export(trained, tmp_path, change, module_of_a_stranger, capsys):
    checkpoint = changed(trained, tmp_path, change)
    with pytest.raises(UserError, match=r"the config that comes with the weights names stranger\.\w+, which .* CIR_TRUST=stranger"):
        load(checkpoint)
    assert main(["export", str(checkpoint), str(tmp_path / "new")]) == 2
    assert "names stranger." in capsys.readouterr().err
    assert not module_of_a_stranger.exists()


def test_packages_that_the_user_trusts(trained, monkeypatch):
    checkpoint = trained / "run" / "checkpoints" / "best.ckpt"
    assert load(checkpoint)
    monkeypatch.setenv("CIR_TRUST", "other, another")
    with pytest.raises(UserError, match=r"names fakes\.tiny\.TinyLVLM, which .* CIR_TRUST=fakes"):
        load(checkpoint)
    monkeypatch.setenv("CIR_TRUST", "other, fakes")
    assert load(checkpoint)


SECRETS = {"api_key": "hunter2", "access_token": "hunter2", "password": "hunter2", "url": "https://me:hunter2@here/runs", "tokens": 3}


class SecretLogger(CSVLogger):
    """A logger with secrets, such as those of Comet, Neptune and MLflow."""

    def __init__(
        self, save_dir: str, api_key: str | None = None, access_token: str = "", password: str = "", url: str = "", tokens: int = 0
    ) -> None:
        super().__init__(save_dir)
        self.secrets = [api_key, access_token, password, url, tokens]
        SecretLogger.last = self


def test_secrets_of_loggers_stay_out_of_configs_and_checkpoints(trained, tmp_path, monkeypatch, capsys):
    for name in ("WANDB_API_KEY", "HF_TOKEN", "COMET_API_KEY"):
        monkeypatch.setenv(name, "hunter2")
    monkeypatch.setenv("CIR_TRUST", f"fakes,{__name__}")
    logger = {"class_path": f"{__name__}.SecretLogger", "init_args": {"save_dir": str(tmp_path / "log"), **SECRETS}}
    (tmp_path / "log.yaml").write_text(yaml.safe_dump({"trainer": {"logger": [logger, logger], "default_root_dir": str(tmp_path / "run")}}))
    assert main(["fit", "--config", str(trained / "tiny.yaml"), "--config", str(tmp_path / "log.yaml")]) == 0
    assert SecretLogger.last.secrets == list(SECRETS.values())
    said = capsys.readouterr()
    assert said.out.count("trainer.logger.1.init_args.api_key") == 1
    files = [path for folder in ("run", "log") for path in (tmp_path / folder).rglob("*") if path.is_file()]
    assert {"config.yaml", "last.ckpt", "best.ckpt", "metrics.csv"} <= {path.name for path in files}
    assert not [path for path in files if b"hunter2" in path.read_bytes()]
    assert "hunter2" not in said.out + said.err
    kept = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["trainer"]["logger"][0]["init_args"]
    assert kept["tokens"] == 3
    assert main(["test", "--ckpt_path", str(tmp_path / "run")]) == 0
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "new")]) == 0
