"""What README and docs/ say: their commands compose, their links lead somewhere, the tests they name exist."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from conftest import config

import hap.bench  # noqa: F401 - registers the schema of its configuration
from hap.config import check_config
from hap.description import add_experiment, describe_run
from hap.doctor import places

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"^(?:srun )?(?:python -m hap\.|hap )(\w+) (.*)$")


def commands() -> list[str]:
    """In code blocks, without those after a `$`: these show what is printed, of mistakes too."""
    blocks = [block for page in PAGES for block in re.findall(r"```\w*\n(.*?)```", page.read_text(), re.S)]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return sorted({line for line in lines if COMMAND.match(line)})


def described(folder: Path, experiment: str) -> Path:
    """A checkpoint without weights that says what an experiment's would."""
    path = folder / "last.ckpt"
    torch.save({"hap": describe_run(config("train", f"experiment={experiment}"), {}), "state_dict": {}}, path)
    return path


@pytest.mark.parametrize("line", commands())
def test_command_composes(line, tmp_path):
    program, rest = COMMAND.match(line).groups()  # type: ignore[union-attr]
    arguments = shlex.split(rest, comments=True)
    if program == "report":  # folders, and no configuration
        assert not any("=" in argument or argument.startswith("-") for argument in arguments)
        return
    if program == "doctor":
        places(arguments)
        return
    if program == "bench":
        arguments[0] = f"benchmark={arguments[0]}"
    if "--verify" in arguments:
        arguments[arguments.index("--verify") :] = ["verify=true", f"out={arguments[-1]}"]
    if "-m" in arguments:  # the values of the first job
        arguments = [
            re.sub(r"^([\w.]+=[^\[,]+),.*", r"\1", argument) for argument in arguments if argument != "-m"
        ]
    if program in ("eval", "predict"):
        words = {"reader.sets=": "pose3d_hmr2", "luperson": "pretrain_hap", "input=": "pretrain_hap"}
        file = described(
            tmp_path, next((name for word, name in words.items() if word in rest), "reid_market1501")
        )
        arguments = [f"ckpt_path={file}" if a.startswith("ckpt_path=") else a for a in arguments]
        arguments = add_experiment(arguments)
    arguments = ["text_encoder=words" if a == "text_encoder=/data/bert" else a for a in arguments]
    cfg = config(program, *(argument for argument in arguments if not argument.startswith("hydra")))
    if program in ("train", "eval", "predict", "bench", "export"):
        check_config(cfg)


def test_there_are_commands_to_test():
    assert len(commands()) > 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_named_tests_exist():
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    for page in PAGES:
        for name in re.findall(r"`(test_\w+)`", page.read_text()):
            assert f"def {name}(" in tests, f"{page.name} names {name}"
