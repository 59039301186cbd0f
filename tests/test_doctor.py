"""`hap doctor` on whole and half-broken folders and machines: what it says, what it lets a user type, how it ends."""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import as_another_user, config

from hap.checkup import machine
from hap.checkup.findings import Clock, Finding, guarded, lines
from hap.checkup.folders import command, count_files, look_for, look_in
from hap.checkup.parts import IMAGES
from hap.checkup.sets import DATA_SETS
from hap.checkup.weights import weights
from hap.config import CONF_DIR
from hap.data.files import IMAGE_SUFFIXES
from hap.data.reid import read_market1501
from hap.doctor import BY_NAME, main, places
from hap.errors import HapError
from hap.programs import PROGRAMS
from hap.synthetic.smpl import write_bodies

# Nothing of the network is answered, and whoever asks is written down.
NO_NETWORK = """
import socket
def refuse(*args, **kwargs):
    with open({log!r}, "a") as file:
        file.write(repr(args))
    raise OSError("no network")
socket.getaddrinfo = socket.create_connection = socket.socket.connect = refuse
"""


def clock() -> Clock:
    return Clock(5)


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def look(name: str, base: Path) -> list[Finding]:
    return look_for(BY_NAME[name], base, clock())


def levels(findings: list[Finding]) -> set[str]:
    return {finding.level for finding in findings}


def told(findings: list[Finding]) -> str:
    """All texts, as they are before lines are broken."""
    return "\n".join(line for finding in findings for line in (finding.name, finding.text, *finding.todo))


MARKET = ("bounding_box_train/0002_c1s1_000451_03.jpg", "query/0003_c1s1_000001_00.jpg")
GALLERY = "bounding_box_test/0003_c2s1_000001_01.jpg"
LISTS = [f"list_{split}.txt" for split in ("train", "val", "query", "gallery")]


# --- whole data sets


@pytest.mark.parametrize(
    ("name", "count", "options"),
    [
        ("luperson", 4, {}),
        ("market1501", 30, {"images_per_identity": 4, "num_cameras": 2}),
        ("msmt17", 30, {"images_per_identity": 4, "num_cameras": 2}),
        ("pa100k", 10, {}),
        ("rap", 10, {}),
        ("peta", 10, {}),
        ("coco", 4, {}),
        ("mpii", 4, {}),
        ("aic", 4, {}),
    ],
)
def test_a_drawn_set_in_its_official_layout_is_whole(drawn, name, count, options):
    root = drawn(name, count, **options)
    findings = look_in(BY_NAME[name], root, clock())
    assert levels(findings) == {"ok"}, told(findings)
    assert "drawn by hap" in findings[0].text
    assert f"data.root={root}" in findings[0].todo[0]


def test_a_tree_of_sets_with_bodies(drawn, tmp_path):
    (tmp_path / "pose3d").symlink_to(drawn("pose3d_multi", 12), target_is_directory=True)
    write_bodies(tmp_path / "smpl")
    for name in ("h36m", "muco", "coco3d", "mpii3d", "pw3d", "smpl"):
        findings = look(name, tmp_path)
        assert levels(findings) == {"ok"}, told(findings)
    assert f"data.root={tmp_path}/pose3d " in look("h36m", tmp_path)[0].todo[0]


@pytest.mark.parametrize("dataset", DATA_SETS, ids=lambda dataset: dataset.name)
def test_the_next_command_composes(dataset, tmp_path):
    root = tmp_path / "a b"
    options = [part.option for part in dataset.parts if part.option]
    hap, program, *arguments = shlex.split(command(dataset, root, options))
    assert hap == "hap"
    if program == "eval":  # of a checkpoint, which knows its own
        arguments = [argument for argument in arguments if not argument.startswith("ckpt_path=")]
        arguments.append("experiment=pose3d_hmr2")
    arguments = [argument.replace("a b", "b") for argument in arguments]  # the program quotes paths by itself
    cfg = config(program, *arguments)
    assert str(tmp_path) in (cfg.body.folder if dataset.name == "smpl" else cfg.data.root)


def test_each_set_of_the_configuration_has_its_record():
    own = {"attributes", "bodies3d", "described", "people", "pose", "prepared"}  # of the user's
    several = {"pose3d", "pose_multi"}  # made of others
    again = {"peta_zs", "rap_zs"}  # other splits of one that is there
    known = {path.stem for path in (CONF_DIR / "data").glob("*.yaml")}
    assert known - own - several - again <= set(BY_NAME)
    assert IMAGES == IMAGE_SUFFIXES


def test_counts_are_compared_with_the_published_ones(tmp_path):
    root = touch(tmp_path / "market1501", *MARKET, GALLERY)
    touch(
        root,
        *(f"query/{i:04}_c1s1_000001_00.jpg" for i in range(4, 3_371)),
        "query/Thumbs.db",
        "query/.x.jpg",
    )
    findings = look("market1501", tmp_path)
    assert "query: 3,368 files, as published" in findings[0].text
    assert "bounding_box_train: 1 file, 12,936 were published" in told(findings)
    assert levels(findings) == {"ok", "warn"}


def test_counting_ends_with_the_time_and_follows_links_once(tmp_path):
    touch(tmp_path / "a", *(f"{i % 3}/{i}.JPG" for i in range(3_000)))
    (tmp_path / "a/0/loop").symlink_to(tmp_path / "a", target_is_directory=True)
    (tmp_path / "a/else").symlink_to(touch(tmp_path / "b", "x.png"), target_is_directory=True)
    assert count_files(tmp_path / "a", IMAGES, clock()) == (3_001, True)
    number, complete = count_files(tmp_path / "a", IMAGES, Clock(0))
    assert number < 3_001
    assert not complete
    (tmp_path / "market1501").symlink_to(touch(tmp_path / "m", *MARKET, GALLERY), target_is_directory=True)
    assert "at least" in told(look_in(BY_NAME["market1501"], tmp_path / "m", Clock(0)))


# --- half-broken ones


def test_a_missing_folder_is_named_with_where_it_is_to_be_had(tmp_path):
    touch(tmp_path / "market1501", *MARKET)
    findings = look("market1501", tmp_path)
    assert "stop" in levels(findings)
    assert "1 of 3 parts missing: bounding_box_test" in told(findings)
    assert "zheng-lab" in told(findings)
    assert "hap train" not in told(findings)  # it would end at once
    with pytest.raises(HapError, match="bounding_box_test"):
        read_market1501(tmp_path / "market1501")


def test_an_archive_that_is_one_level_too_deep_or_not_unpacked(tmp_path):
    touch(tmp_path / "luperson/LUPerson", "LUPerson-data/a.jpg", "LUPerson-pose/a.npy", "cfs_list.pkl")
    assert f"data.root={tmp_path}/luperson/LUPerson " in look("luperson", tmp_path)[0].todo[0]
    touch(tmp_path / "rap", "RAP_annotation/RAP_annotation.mat", "RAP_dataset.zip")
    assert f"unpack RAP_dataset.zip in {tmp_path}/rap" in told(look("rap", tmp_path))
    touch(tmp_path / "peta", "PETA.mat", "images/note.txt", "images.tar.gz")
    assert "images has no image" in told(look("peta", tmp_path))
    assert "unpack images.tar.gz" in told(look("peta", tmp_path))


def test_parts_that_an_option_does_without(tmp_path):
    touch(tmp_path / "luperson", "LUPerson-data/a.jpg")
    findings = look("luperson", tmp_path)
    assert levels(findings) == {"ok", "warn"}
    assert findings[0].todo[0].endswith(" data.reader.require_pose=false data.reader.cfs_ratio=1")
    (tmp_path / "luperson/LUPerson-pose").mkdir()
    assert "LUPerson-pose has no .npy" in told(look("luperson", tmp_path))
    assert "data.reader.require_pose=false" in look("luperson", tmp_path)[0].todo[0]
    touch(tmp_path / "coco", "annotations/person_keypoints_val2017.json", "val2017/a.jpg")
    assert "training: evaluation alone works" in told(look("coco", tmp_path))


def test_both_versions_of_msmt17(tmp_path):
    touch(tmp_path / "one/MSMT17_V1", *LISTS, "train/0000/a.jpg", "test/0000/a.jpg")
    touch(tmp_path / "two/msmt17", *LISTS, "mask_train_v2/0000/a.jpg", "mask_test_v2/0000/a.jpg")
    touch(tmp_path / "three/msmt17", *MARKET, GALLERY)
    assert "V1, of the published numbers" in told(look("msmt17", tmp_path / "one"))
    assert "V2: faces are blurred" in told(look("msmt17", tmp_path / "two"))
    assert "nothing says whether it is V1 or V2" in told(look("msmt17", tmp_path / "three"))
    (tmp_path / "two/msmt17/list_query.txt").unlink()
    assert "list_query.txt" in told(look("msmt17", tmp_path / "two"))
    assert "stop" in levels(look("msmt17", tmp_path / "two"))


def test_links_to_nowhere(tmp_path):
    touch(tmp_path / "market1501", *MARKET)
    (tmp_path / "market1501/bounding_box_test").symlink_to(tmp_path / "gone")
    findings = look("market1501", tmp_path)
    assert f"bounding_box_test is a link to {tmp_path}/gone, where nothing is" in told(findings)
    assert "stop" in levels(findings)
    (tmp_path / "pa100k").symlink_to(tmp_path / "pa100k")  # in circles
    (tmp_path / "rap").symlink_to("/gone")
    assert "cannot be read" in told(look("pa100k", tmp_path))
    assert "is a link to /gone" in told(look("rap", tmp_path))
    (tmp_path / "coco").mkdir()
    assert [levels(look(name, tmp_path)) for name in ("pa100k", "rap", "coco")] == [
        {"stop"},
        {"stop"},
        {"warn"},
    ]


def test_folders_and_files_that_may_not_be_read(tmp_path):
    for folder in (tmp_path, *tmp_path.parents):
        folder.chmod(0o755)
        if folder.name.startswith("pytest-of-"):
            break
    touch(tmp_path / "market1501", *MARKET, GALLERY)
    touch(tmp_path / "peta", "PETA.mat", "images/00001.png")
    touch(tmp_path / "coco", "annotations/person_keypoints_val2017.json", "val2017/a.jpg")
    locked = [tmp_path / "market1501/query", tmp_path / "peta/PETA.mat", tmp_path / "coco"]
    for path in locked:
        path.chmod(0)
    try:
        with as_another_user():
            found = {name: look(name, tmp_path) for name in ("market1501", "peta", "coco")}
    finally:
        for path in locked:
            path.chmod(0o755)
    for (name, findings), path in zip(found.items(), locked, strict=True):
        assert f"{path} may not be read" in told(findings), name
        assert f"chmod -R u+rX {path}" in told(findings)
    assert "stop" in levels(found["market1501"]) & levels(found["peta"])


def test_bodies_without_regressors_or_of_another_model(tmp_path):
    touch(tmp_path / "smpl", "SMPLX_NEUTRAL.npz")
    assert "SMPLX_NEUTRAL.npz is of SMPL-X, another body" in told(look("smpl", tmp_path))
    touch(tmp_path / "smpl", "smpl_neutral.pkl")
    text = told(look("smpl", tmp_path))
    assert "1 of 5 parts missing: J_regressor_extra.npy" in text
    assert "J_regressor_h36m_correct.npy is missing: no scores" in text
    assert "SPIN" in text


def captions(names: list[str]) -> str:
    return json.dumps([{"split": "train", "id": 1, "file_path": name, "captions": ["a"]} for name in names])


def test_folders_that_captions_name_and_that_are_missing(tmp_path):
    root = tmp_path / "cuhk_pedes/CUHK-PEDES"
    folders = ["cam_a", "cam_b", "CUHK01", "CUHK03", "Market", "test_query", "train_query"]
    names = [f"{folder}/{i}.jpg" for folder in folders for i in range(3)]
    touch(root, "caption_all.json", *(f"imgs/{name}" for name in names if name.split("/")[0] in folders[:3]))
    text = told(look("cuhk_pedes", tmp_path))
    assert "reid_raw.json" in text
    assert "caption_all.json has no splits" in text
    (root / "reid_raw.json").write_text(captions(names))
    findings = look("cuhk_pedes", tmp_path)
    assert "stop" in levels(findings)
    assert "12 of the 21 images that reid_raw.json names are not there" in told(findings)
    assert [line for finding in findings for line in finding.todo if line.startswith("Market")] == [
        "Market: 3"
    ]
    for content in ("[{}]", "{", "[1]", "null", "[" * 100_000):
        (root / "reid_raw.json").write_text(content)
        assert "is no list of images" in told(look("cuhk_pedes", tmp_path)), content[:9]


def test_names_do_nothing_to_a_terminal(tmp_path):
    base = tmp_path / "\x1b[31m\nred"
    touch(base / "cuhk_pedes", "imgs/a.jpg")
    (base / "cuhk_pedes/reid_raw.json").write_text(captions(["\x1b[2J/../\u202e/x.jpg", "../../etc/passwd"]))
    findings = look("cuhk_pedes", base)
    assert levels(findings) == {"ok", "warn", "stop"} - {"ok"} | {"note"}
    assert all(line.isprintable() for line in lines(findings))


def test_pipes_and_files_in_place_of_folders(tmp_path):
    touch(tmp_path / "rstpreid", "imgs/a.jpg")
    os.mkfifo(tmp_path / "rstpreid/data_captions.json")
    assert "not a regular file" in told(look("rstpreid", tmp_path))
    touch(tmp_path, "aic")
    touch(tmp_path / "mpii", "annotations", "images")
    assert "warn" in levels(look("aic", tmp_path))
    assert "ok" not in levels(look("mpii", tmp_path))


# --- the machine

BUILD = {"version": "2.6.0", "cuda": "12.4", "hip": None, "gpus": [], "mps": False, "warnings": []}
OLD = "CUDA initialization: The NVIDIA driver on your system is too old (found version 11040). Please update"


@pytest.mark.parametrize(
    ("said", "cards", "level", "words"),
    [
        ({"gpus": [["H100", 80 << 30]]}, ["H100, 550.54"], "ok", "1: H100 (80 GB); driver 550.54"),
        ({}, [], "note", "none is to be seen"),
        ({"warnings": [OLD]}, ["Tesla V100, 470.1"], "warn", "too old"),
        ({"cuda": None}, ["H100, 550.54"], "warn", "this PyTorch is for the CPU"),
        ({"cuda": None}, [], "note", "trainer=auto takes the CPU"),
        ({"cuda": None, "mps": True}, [], "ok", "MPS"),
    ],
)
def test_what_pytorch_and_the_driver_say(said, cards, level, words):
    found = list(machine.of_torch(BUILD | said, cards))[1]
    assert found.level == level
    assert words in found.text
    assert found.todo or level == "ok" or said.get("cuda", "") is None


def test_a_pytorch_that_cannot_be_loaded_stops_a_run():
    torch = machine.Asked((sys.executable, "-c", "raise OSError('libcudart.so.12: cannot open')"))
    (found,) = machine.gpu(torch, machine.Asked(("no such program",)), Clock(20))
    assert found.level == "stop"
    assert "OSError: libcudart.so.12" in found.text
    slow = machine.Asked((sys.executable, "-c", "import time; time.sleep(60)"))
    (found,) = machine.gpu(slow, machine.Asked(("no such program",)), Clock(0))
    assert found.level == "note"
    assert slow.process is not None
    assert slow.process.poll() is not None  # nothing is left running


@pytest.mark.parametrize(
    ("environment", "level", "words"),
    [
        ({}, "ok", "nobody has logged in: logger=wandb logs on this machine"),
        ({"WANDB_API_KEY": "secret"}, "ok", "logs to the service"),
        ({"WANDB_MODE": "offline"}, "note", "WANDB_MODE=offline"),
        ({"WANDB_MODE": "disabled"}, "note", "nothing is logged"),
        ({"WANDB_MODE": "online"}, "warn", "nobody has logged in"),
        ({"WANDB_MODE": "of\x1bfline"}, "warn", "none of its modes"),
    ],
)
def test_state_of_wandb(tmp_path, environment, level, words):
    nobody = {"NETRC": str(tmp_path / "none"), "WANDB_CONFIG_DIR": str(tmp_path)}
    (found,) = machine.wandb(nobody | environment)
    assert found.level == level
    assert words in found.text
    assert "secret" not in "".join(lines([found]))


def test_settings_and_logins_of_wandb_are_seen(tmp_path):
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret")
    known = {"NETRC": str(tmp_path / "netrc"), "WANDB_CONFIG_DIR": str(tmp_path)}
    (found,) = machine.wandb(known)
    assert "logs to the service" in found.text
    for content, words in (
        ("[default]\nmode = offline\n", "`wandb offline` was typed"),
        ("[default]\nmode = %(x)s\n", "logs to the service"),
        ("no settings", "logs to the service"),
        ("\0\xff[", "logs to the service"),
    ):
        (tmp_path / "settings").write_bytes(content.encode("latin1"))
        (found,) = machine.wandb(known)
        assert words in found.text


def test_disks(tmp_path, monkeypatch):
    (found,) = machine.disk(tmp_path / "runs/deeper", "runs", "run_dir=FOLDER")
    assert found.level in ("ok", "warn")
    assert not list(tmp_path.iterdir())

    def full(**_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(machine.tempfile, "NamedTemporaryFile", full)
    (found,) = machine.disk(tmp_path, "runs", "run_dir=FOLDER")
    assert found.level == "stop"
    assert "No space left" in found.text


def test_missing_packages_and_extras(monkeypatch):
    needed = [
        "torch>=99",
        "no-such-package>=1",
        "onnx>=1; extra == 'export'",
        "gone; extra == 'lmdb'",
        "pip; sys_platform == 'x'",
    ]
    monkeypatch.setattr(machine.metadata, "requires", lambda _: needed)
    text = told(list(machine.software()))
    assert "torch is" in text
    assert ">=99 is needed" in text
    assert "no-such-package is not installed" in text
    assert 'pip install "hap[lmdb]"' in text
    assert "export" not in text  # onnx is there


def test_weights_that_are_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    (tmp_path / "hap pretrained.pth").write_bytes(bytes(1 << 20))
    (tmp_path / "lfs.pth").write_text("version https://git-lfs.github.com/spec/v1")
    (tmp_path / "gone.ckpt").symlink_to("/gone")
    touch(tmp_path / "hf/hub/models--timm--vit_base_patch16_224.mae/snapshots/1", "model.safetensors")
    touch(tmp_path / "runs/a/b/checkpoints", "last.ckpt")
    text = told(list(weights(tmp_path / "data", clock())))
    for words in (
        "weights=drawn",
        f"'weights={tmp_path}/hap pretrained.pth'",
        "lfs.pth has 42 bytes",
        "gone.ckpt is a link to nowhere",
        "weights=timm:vit_base_patch16_224.mae",
        "ckpt_path=runs/a/b/checkpoints/last.ckpt",
    ):
        assert words in text


def test_a_check_that_fails_is_a_finding():
    (found,) = guarded("memory", lambda: 1 / 0)  # type: ignore[arg-type,return-value]
    assert (found.level, found.name) == ("note", "memory")
    assert "ZeroDivisionError" in found.text


# --- the program


def doctor(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    log = cwd / "network.txt"
    (cwd / "site").mkdir(exist_ok=True)
    (cwd / "site/sitecustomize.py").write_text(NO_NETWORK.format(log=str(log)))
    path = os.pathsep.join(
        [str(cwd / "site"), str(CONF_DIR.parent / "src"), os.environ.get("PYTHONPATH", "")]
    )
    start = [sys.executable, "-c", "from hap.programs import main; main()", "doctor"]
    result = subprocess.run(
        [*start, *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in result.stderr
    assert not log.exists()
    return result


def test_from_an_empty_folder_in_seconds_and_without_network(tmp_path):
    start = time.monotonic()
    result = doctor(cwd=tmp_path, HAP_DATA=str(tmp_path / "none"), PYTHONIOENCODING="ascii", LC_ALL="C")
    assert time.monotonic() - start < 8  # 5 on an idle machine
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    assert all(dataset.title in result.stdout for dataset in DATA_SETS)
    assert "synthetic=true" in result.stdout
    assert not (tmp_path / "runs").exists()  # it looks and leaves nothing


def test_a_broken_set_is_status_1_and_a_wrong_word_status_2(tmp_path, capsys, monkeypatch):
    touch(tmp_path / "d\u00e4ta/market1501", *MARKET)
    for arguments, status in (
        ([f"data={tmp_path}/d\u00e4ta"], 1),
        ([f"market1501={tmp_path}/gone"], 1),
        ([f"data={tmp_path}/gone"], 1),
        (["market1051=x"], 2),
        (["x"], 2),
        (["data="], 2),
        (["data=a\0b"], 2),
    ):
        monkeypatch.setattr(sys, "argv", ["hap doctor", *arguments])
        monkeypatch.setattr(machine, "ASK_TORCH", "print()")
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == status, arguments
    out, errors = capsys.readouterr()
    assert "did you mean market1501?" in errors
    assert "bounding_box_test" in out


def test_a_reader_that_goes_away(tmp_path):
    command = f"{shlex.quote(sys.executable)} -m hap.doctor | head -n 1"
    environment = os.environ | {"PYTHONPATH": str(CONF_DIR.parent / "src"), "HAP_DATA": str(tmp_path)}
    result = subprocess.run(
        command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.stdout == "this machine\n"
    assert result.stderr == ""


def test_it_starts_without_pytorch_and_hydra():
    code = (
        "import hap.programs, hap.doctor, sys; print(sorted({'torch', 'hydra', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
    assert "doctor" in PROGRAMS


def test_places_on_the_command_line(tmp_path):
    bases, certain = places([f"data={tmp_path}", "data=~", "coco=a=b"])
    assert bases == [tmp_path, Path.home()]
    assert certain == {"coco": Path("a=b")}
