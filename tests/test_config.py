"""Every shipped configuration fits its constructors, and every mistake is found and named."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import config
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from hap.cli import describe, quote_paths
from hap.config import CONF_DIR, check_config, check_hydra, folder_name
from hap.errors import HapError
from hap.programs import PROGRAMS
from hap.runner import run

ROOT = Path(__file__).parents[1]
EXPERIMENTS = sorted(path.stem for path in (CONF_DIR / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("program", ["train", "eval", "predict"])
def test_experiment_fits_its_constructors(program, experiment):
    check_config(config(program, f"experiment={experiment}"))


@pytest.mark.parametrize(
    ("group", "option"),
    [
        (group, path.stem)
        for group in ("model", "trainer", "logger", "debug", "masking", "callbacks")
        for path in sorted((CONF_DIR / group).glob("*.yaml"))
    ],
)
def test_group_option_fits_its_constructors(group, option):
    check_config(config("train", "experiment=pretrain_hap", f"{group}={option}"))


def test_all_mistakes_are_shown_at_once():
    cfg = config(
        "train", "experiment=pretrain_hap", "+data.reader.cfs_ration=1", "+task.recipe.lrr=1", "epochs=???"
    )
    with pytest.raises(HapError) as error:
        check_config(cfg)
    message = str(error.value)
    assert "read_luperson has no argument 'cfs_ration'; did you mean 'cfs_ratio'?" in message
    assert "has no argument 'lrr'; did you mean 'lr'?" in message
    assert "epochs: has no value" in message


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("total_bach_size", "there is no key total_bach_size; did you mean 'total_batch_size'?"),
        ("zero_shots", "did you mean 'zero_shot'?"),
        ("model.dept", "there is no key model.dept; did you mean 'depth'?"),
        ("masking.ratoi", "there is no key masking.ratoi; did you mean 'ratio'?"),
        ("data.rot", "no argument 'rot'; did you mean 'root'?"),
        ("data.transforms.trian.scale", "data.transforms.trian: has no _target_; did you mean 'train'?"),
        ("task.model.dept", "no argument 'dept'; did you mean 'depth'?"),
        ("callbacks.checkpont.keep", "callbacks.checkpont: has no _target_; did you mean 'checkpoint'?"),
        ("callbacks.checkpoint.kep", "no argument 'kep'; did you mean 'keep'?"),
        ("logger.csvv.name", "logger.csvv: has no _target_; did you mean 'csv'?"),
        ("trainer.max_epoch", "no argument 'max_epoch'; did you mean 'max_epochs'?"),
        ("trainer.strategy.find_unused_parametres", "did you mean 'find_unused_parameters'?"),
        ("body.gender", "body: has no _target_"),  # of another task
        ("data.plan.images_per_identity", "data: plan has keys, but no _target_"),
    ],
)
@pytest.mark.parametrize("plus", ["+", "++"])
def test_misspelt_key_is_found_though_it_was_added(plus, key, message):
    cfg = config("train", "experiment=pretrain_hap", "trainer=ddp", f"{plus}{key}=1")
    with pytest.raises(HapError, match="the configuration has mistakes") as error:
        check_config(cfg)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("+callbacks.progess=null", "did you mean 'progress'?"),
        ("++logger.cvs=null", "did you mean 'csv'?"),
        ("+data.transforms.tran=null", "did you mean 'train'?"),
    ],
)
def test_switching_off_by_a_misspelt_name_is_found(override, meant):
    key = override.strip("+").partition("=")[0]
    with pytest.raises(HapError, match=re.escape(f"{key}: there is nothing to switch off; {meant}")):
        check_config(config("train", "experiment=pretrain_hap", override))


def test_parts_can_be_switched_off():
    off = ["callbacks.progress=null", "callbacks.pictures=null", "+callbacks.mine=null", "+logger.wandb=null"]
    check_config(config("train", "experiment=pretrain_hap", *off, "logger.csv=null"))


@pytest.mark.parametrize(
    "override",
    ["data.reader=read_market1501", "data.plan=3", "data.transforms=3", "task.model=3", "task.recipe=3"],
)
def test_a_value_in_place_of_a_part_is_found(override):
    key, _, value = override.partition("=")
    with pytest.raises(HapError, match=f"{key.partition('.')[2]} is '?{value}'?, not built by a _target_$"):
        check_config(config("train", "experiment=reid_market1501", override))


def test_an_argument_of_the_trainer_can_be_added():
    check_config(config("train", "experiment=pretrain_hap", "+trainer.detect_anomaly=1"))


@pytest.mark.parametrize("override", ["masking.ratio=0.5", "+masking=random"])
def test_nothing_is_masked_in_reid(override):
    with pytest.raises(HapError, match="nothing is masked in this experiment"):
        check_config(config("train", "experiment=reid_market1501", override))


@pytest.mark.parametrize(
    ("name", "overrides"),
    [("pack", ["out=x", "+requirepose=1"]), ("synthesize", ["dataset=luperson", "out=x", "+num_image=1"])],
)
def test_misspelt_key_of_the_other_programs(name, overrides):
    with pytest.raises(HapError, match="there is no key"):
        check_config(config(name, *overrides))


@pytest.mark.parametrize("trainer", ["gpu", "ddp"])
def test_without_a_gpu_the_message_says_what_to_type(trainer, tmp_path, monkeypatch):
    for backend in (torch.cuda, torch.backends.mps):
        monkeypatch.setattr(backend, "is_available", lambda: False)
    with pytest.raises(HapError, match="no GPU is to be seen here: trainer=auto"):
        run("train", config("train", "experiment=pretrain_hap", f"trainer={trainer}"), tmp_path / "run")
    assert not (tmp_path / "run/config.yaml").exists()


def test_misspelt_key_of_hydra():
    cfg = config("train", "experiment=pretrain_hap", "+hydra.sweep.dirr=x", hydra=True)
    with pytest.raises(HapError, match=r"there is no key sweep\.dirr; did you mean 'dir'"):
        check_hydra(cfg.hydra)
    check_hydra(config("train", "experiment=pretrain_hap", hydra=True).hydra)


@pytest.mark.parametrize("name", ["../../elsewhere", "a/b", "..", ""])
def test_name_of_a_run_stays_in_its_folder(name):
    with pytest.raises(HapError, match="no separators"):
        folder_name(name)
    with pytest.raises(HapError, match="no separators"):
        check_config(config("train", "experiment=pretrain_hap", f"name='{name}'"))


@pytest.mark.parametrize(
    "path",
    ["epoch=3-step=100.ckpt", "2024", "a b, c", "x (1)", "[x]", "{x: 1}", "it's", "back\\slash", "end\\", "1e5",
     "true", "a:b", "a#b", "%d", "a\\'b"],
)  # fmt: skip
def test_path_is_taken_as_it_is(path):
    arguments = quote_paths([f"ckpt_path={path}", f"data.root={path}", "epochs=3"])
    assert quote_paths(arguments) == arguments  # other ranks are given what was quoted already
    cfg = config("train", "experiment=pretrain_hap", *arguments)
    assert (cfg.ckpt_path, cfg.data.root, cfg.epochs) == (path, path, 3)


def test_weights_are_one_path_or_a_list_of_them():
    arguments = quote_paths(["weights=[runs/epoch=3.ckpt,~/it's (1).pth, none,'a,b',2024,drawn]"])
    assert quote_paths(arguments) == arguments
    names = ["runs/epoch=3.ckpt", f"{Path.home()}/it's (1).pth", "none", "a,b", "2024", "drawn"]
    assert config("eval", "experiment=probe", *arguments).weights == names
    for one in ("2024", "x=1", "https://somewhere.org/x.pth?a=b"):
        assert config("eval", "experiment=probe", *quote_paths([f"weights={one}"])).weights == one


def test_home_folder_and_no_path():
    home = str(Path.home())
    cfg = config("train", "experiment=pretrain_hap", *quote_paths(["data.root=~/x", "weights=null"]))
    assert (cfg.data.root, cfg.weights) == (f"{home}/x", None)
    assert quote_paths(["-m", "weights=a,b"]) == ["-m", "weights=a,b"]


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "torch.os.system",
        "hap.programs.runpy.run_path",
        "hap.cli.run_with_hydra",
        "torch.load",
        "torch.jit.load",
        "torch.hub.load",
        "timm.models.load_state_dict",
        "lightning.pytorch.Trainer.fit",
        "albumentations.load",
    ],
)
def test_only_parts_of_a_run_can_be_called(target):
    cfg = OmegaConf.create({"x": {"_target_": target}})
    with pytest.raises(HapError, match="not allowed"):
        check_config(cfg)


@pytest.mark.parametrize("resolver", ["oc.create:{_target_: os.system}", "oc.decode:'{_target_: os.system}'"])
def test_target_behind_a_resolver(resolver):
    cfg = OmegaConf.create({"x": f"${{{resolver}}}"})
    with pytest.raises(HapError, match="not allowed"):
        check_config(cfg)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("experiment=pretrain_hop", "there is no experiment=pretrain_hop; did you mean 'pretrain_hap'?"),
        ("epocs=3", "did you mean 'epochs'?"),
        ("data.rot=3", "did you mean 'data.root'?"),
        ("epochs=many", "Value 'many' of type 'str' could not be converted to Integer"),
        ("trainer=gpuu", "there is no trainer=gpuu; did you mean 'gpu'?"),
        ("trainer.detect_anomaly=1", "+trainer.detect_anomaly=VALUE sets it"),
        ("name=a=b", "quote the value: \"name='a=b'\""),
    ],
)
def test_misspelt_override_gets_a_suggestion(override, message, monkeypatch):
    others = [] if override.startswith("experiment") else ["experiment=pretrain_hap"]
    monkeypatch.setattr(sys, "argv", ["hap", *others, override])
    with pytest.raises(Exception) as error:
        config("train", *others, override)
    assert message in describe(error.value)
    assert "To append" not in describe(error.value)  # what is misspelt cannot be added
    assert "hydra.cc" not in describe(error.value)


def test_misspelt_key_in_an_experiment_file(tmp_path):
    """Hydra merges it silently; the root schema and the check do not."""
    for body, message in (("epocs: 3", "epocs"), ("data:\n  rot: 3", "rot")):
        folder = tmp_path / message / "experiment"
        folder.mkdir(parents=True)
        (folder / "mine.yaml").write_text(
            f"# @package _global_\ndefaults: [pretrain_hap, _self_]\nname: mine\n{body}\n"
        )
        result = program("train", "--config-dir", str(folder.parent), "experiment=mine", cwd=tmp_path)
        assert result.returncode == 2, result.stderr
        assert message in result.stderr
        assert "Traceback" not in result.stderr


def program(name: str, *arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", f"hap.{name}", *arguments]
    return subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True)


def test_missing_data_says_what_to_type(tmp_path):
    result = program("train", "experiment=pretrain_hap", "trainer=cpu", cwd=tmp_path)
    assert result.returncode == 2
    message = result.stderr.strip().splitlines()
    assert "data.root=" in message[-1]
    assert "synthetic=true" in message[-1]
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.rglob("config.yaml"))  # the folder is still free for the run that is meant
    full = program("train", "experiment=pretrain_hap", "trainer=cpu", cwd=tmp_path, HYDRA_FULL_ERROR="1")
    assert "Traceback" in full.stderr


def test_a_group_can_be_left_out(tmp_path):
    """Hydra has no null for a group."""
    off = ["logger=null", "callbacks=null", "data.root=.", "trainer=cpu"]
    result = program("train", "experiment=reid_market1501", *off, cwd=tmp_path)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert "bounding_box_train" in result.stderr  # on to the data


def test_an_unexpected_error_keeps_its_traceback():
    with pytest.raises(ConfigCompositionException):  # what Hydra raises is what `describe` is given
        config("train", "experiment=pretrain_hap", "nothing=1")


def test_console_script_names_its_programs(tmp_path):
    hap = [sys.executable, "-c", "from hap.programs import main; main()"]
    result = subprocess.run([*hap, "trian"], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 2
    assert "did you mean 'train'?" in result.stderr
    assert all(name in result.stdout for name in PROGRAMS)


@pytest.mark.slow
def test_wheel_runs_from_an_empty_folder(tmp_path):
    """Built, unpacked elsewhere, and run with neither the checkout nor an editable install on the path."""
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", tmp_path, ROOT],
        check=True,
        capture_output=True,
    )
    site = tmp_path / "site"
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(site)
    code = "import hap, runpy; print(hap.__file__); runpy.run_module('hap.train', run_name='__main__', alter_sys=True)"
    result = subprocess.run(
        [sys.executable, "-c", code, "experiment=pretrain_hap", "--cfg", "job"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert str(site) in result.stdout
    assert "total_batch_size: 4096" in result.stdout, result.stderr


def test_imports_go_one_way():
    """data, models, losses, metrics, optim and plots stand side by side; tasks use them; the runner builds."""
    side_by_side = {"pose", "body", "data", "models", "losses", "metrics", "optim", "plots"}
    for path in sorted((ROOT / "src/hap").rglob("*.py")):
        part = path.relative_to(ROOT / "src/hap").parts[0].removesuffix(".py")
        text = path.read_text()
        imported = set(re.findall(r"^\s*(?:from|import) hap\.(\w+)", text, re.M))
        if part in side_by_side:
            allowed = {"errors", "processes", "pose", "body", "text", part} | (
                {"config"} if part == "models" else set()
            )
            assert imported <= allowed, f"{path} imports {imported - allowed}"
        if part != "tasks" and part not in (
            "runner",
            "building",
            "people",
            "plan",
            "callbacks",
            "inference",
            "exporting",
        ):
            assert "tasks" not in imported, path
        if part in side_by_side | {"tasks", "callbacks", "synthetic"}:
            assert not re.search(r"\bcfg\b", text), f"{path}: configurations end at the runner"


def test_files_stay_short():
    for path in (ROOT / "src/hap").rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 420, path
