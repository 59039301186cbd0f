"""The machine and the installation: Python, packages, PyTorch and its GPU, memory, disk, W&B."""

import configparser
import json
import netrc
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hap.checkup.findings import Clock, Finding, Level

GB = 1 << 30
EXTRAS = {
    "tensorboard": "logger=tensorboard",
    "slurm": "hydra/launcher=submitit_slurm",
    "lmdb": "hap pack and pre-training from an LMDB",
    "export": "hap export format=onnx",
    "optuna": "sweep=optuna",
    "workspace": "scripts/wandb_workspace.py",
}
# PyTorch takes seconds to load and may fail in any way: it is asked in a process of its own.
ASK_TORCH = """
import json, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch
    there = torch.cuda.is_available()
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())] if there else []
    print(json.dumps({
        "version": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip,
        "gpus": [[gpu.name, gpu.total_memory] for gpu in gpus], "mps": torch.backends.mps.is_available(),
        "warnings": [str(warning.message) for warning in caught],
    }))
"""
ASK_DRIVER = ("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
WANDB_MODES = ("online", "offline", "disabled", "shared", "dryrun")


class Asked:
    """A program that answers while other things are looked at."""

    def __init__(self, command: Sequence[str]) -> None:
        self.process: subprocess.Popen[str] | None = None
        with suppress(OSError):
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )

    def answer(self, clock: Clock) -> tuple[str, str] | None:
        """What it wrote to its output and to its errors, the latter for one that failed. None: no answer in time, or
        no such program."""
        if self.process is None:
            return None
        try:
            out, errors = self.process.communicate(timeout=max(clock.left, 0.1))
        except subprocess.TimeoutExpired:
            self.end()
            return None
        return (out, "") if self.process.returncode == 0 else ("", errors)

    def end(self) -> None:
        """Whatever it does."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


def software() -> Iterator[Finding]:
    """Python, hap and what is installed beside it."""
    known = sys.version_info >= (3, 11)
    todo = () if known else ("install Python 3.11 or newer, and hap into an environment of it",)
    yield Finding("ok" if known else "stop", "Python", f"{platform.python_version()}, {sys.executable}", todo)
    try:
        version, needed = metadata.version("hap"), metadata.requires("hap") or []
    except metadata.PackageNotFoundError:
        yield Finding("note", "packages", "hap is not installed, but run from its folder: pip install -e .")
        return
    wrong = [text for requirement in needed if (text := _lacking(requirement, ""))]
    if wrong:
        yield Finding(
            "stop", "packages", f"hap {version}: {', '.join(wrong)}", ("make install, or pip install .",)
        )
    else:
        yield Finding("ok", "packages", f"hap {version} and all that it needs")
    for extra, use in EXTRAS.items():
        if lacking := [text for requirement in needed if (text := _lacking(requirement, extra))]:
            yield Finding("note", extra, f"{', '.join(lacking)}: for {use}", (f'pip install "hap[{extra}]"',))


def _lacking(requirement: str, extra: str) -> str:
    """What is wrong with a requirement of hap's, or of one of its extras; "" if nothing is."""
    from packaging.requirements import Requirement

    wanted = Requirement(requirement)
    if wanted.marker is not None and not wanted.marker.evaluate({"extra": extra}):
        return ""
    if (extra and wanted.marker is None) or wanted.name == "hap":
        return ""
    try:
        version = metadata.version(wanted.name)
    except metadata.PackageNotFoundError:
        return f"{wanted.name} is not installed"
    if wanted.specifier.contains(version, prereleases=True):
        return ""
    return f"{wanted.name} is {version}, {wanted.specifier} is needed"


def gpu(torch: Asked, driver: Asked, clock: Clock) -> Iterator[Finding]:
    """What PyTorch and the driver say."""
    cards = driver.answer(clock)
    answer = torch.answer(clock)
    if answer is None:
        version = metadata.version("torch")
        text = f"{version}, took too long to load to be asked: a cold disk, or a busy machine"
        yield Finding(
            "note",
            "PyTorch",
            "; ".join([text, *(cards[0].splitlines() if cards else [])]),
            ("hap doctor again",),
        )
    elif answer[1] or not answer[0].strip():
        last = [line for line in answer[1].splitlines() if line.strip()] or ["it ended without a word"]
        yield Finding(
            "stop", "PyTorch", f"cannot be loaded: {last[-1]}", ("make install, or pip install torch",)
        )
    else:
        yield from of_torch(json.loads(answer[0].splitlines()[-1]), cards[0].splitlines() if cards else [])


def of_torch(said: Mapping[str, Any], cards: Sequence[str]) -> Iterator[Finding]:
    """Findings from what PyTorch has said (see `ASK_TORCH`), and `name, driver version` of each NVIDIA card."""
    build = f"CUDA {said['cuda']}" if said["cuda"] else f"ROCm {said['hip']}" if said["hip"] else "the CPU"
    yield Finding("ok", "PyTorch", f"{said['version']}, for {build}")
    driver = f"; driver {cards[0].rpartition(',')[2].strip()}" if cards else ""
    if said["gpus"]:
        names = ", ".join(f"{name} ({memory / GB:.0f} GB)" for name, memory in said["gpus"])
        yield Finding("ok", "GPU", f"{len(said['gpus'])}: {names}{driver}")
    elif said["mps"]:
        yield Finding("ok", "GPU", "Apple's, by MPS")
    elif cards and not (said["cuda"] or said["hip"]):
        yield Finding(
            "warn",
            "GPU",
            f"{cards[0]}, but this PyTorch is for the CPU",
            ("install the PyTorch of the driver's CUDA: https://pytorch.org/get-started/locally",),
        )
    elif cards or any("driver" in text and "old" in text for text in said["warnings"]):
        why = next((_first(text) for text in said["warnings"]), "PyTorch does not see it")
        yield Finding(
            "warn",
            "GPU",
            f"{cards[0] if cards else 'one is there'}, and cannot be used: {why}",
            (
                f"a newer driver, or the PyTorch of an older CUDA than {said['cuda']}: "
                "https://pytorch.org/get-started/previous-versions",
                *_hidden_devices(),
            ),
        )
    else:
        todo = ("in a container: --gpus all", *_hidden_devices()) if said["cuda"] else ()
        yield Finding("note", "GPU", "none is to be seen: trainer=auto takes the CPU", todo)


def _first(text: str) -> str:
    return re.split(r"(?<=\.)\s|\n", text.strip())[0]


def _hidden_devices() -> tuple[str, ...]:
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    return () if shown is None else (f"CUDA_VISIBLE_DEVICES is {shown!r}: unset it to see all",)


def memory() -> Iterator[Finding]:
    """Processors, memory and the memory that loader processes share."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = _number(Path("/sys/fs/cgroup/cpu.max"))
    period = _number(Path("/sys/fs/cgroup/cpu.max"), 1)
    limited = f", of which this container may use {share / period:.1f}" if share and period else ""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    allowed = min(filter(None, (total, _number(Path("/sys/fs/cgroup/memory.max")))))
    yield Finding("ok", "CPU", f"{cores} core{'s' * (cores > 1)}{limited}; {allowed / GB:.1f} GB of memory")
    shm = Path("/dev/shm")
    if shm.is_dir():
        size = shutil.disk_usage(shm).total
        small = size < GB
        todo = ("in a container: --shm-size=8g, or --ipc=host; or data.num_workers=0",) if small else ()
        what = f"{size / GB:.2f} GB shared between processes" + (
            ", too little for loaders of large batches" if small else ""
        )
        yield Finding("warn" if small else "ok", "/dev/shm", what, todo)


def _number(file: Path, word: int = 0) -> int:
    """A number of the kernel's; 0 where there is none, or no limit."""
    try:
        return int(file.read_text().split()[word])
    except (OSError, ValueError, IndexError):
        return 0


def disk(folder: Path, name: str, what: str) -> Iterator[Finding]:
    """Whether `folder`, or the nearest that exists above it, can be written to, and how much space is left there."""
    above = folder.absolute()
    while not above.is_dir() and above != above.parent:
        above = above.parent
    try:
        with tempfile.NamedTemporaryFile(dir=above, prefix=".hap_doctor_") as file:
            file.write(bytes(1 << 16))
    except OSError as error:
        todo = (f"make space there, or {what}",) if error.errno in (28, 122) else (what,)
        yield Finding("stop", name, f"nothing can be written to {above}: {error.strerror}", todo)
        return
    free = shutil.disk_usage(above).free
    level: Level = "warn" if free < 5 * GB else "ok"
    yield Finding(level, name, f"{free / GB:.1f} GB free in {above}", (what,) if level == "warn" else ())


def wandb(environment: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """Whether logger=wandb would log, and where to."""
    try:
        version = metadata.version("wandb")
    except metadata.PackageNotFoundError:
        yield Finding("note", "W&B", "not installed: for logger=wandb", ("pip install wandb",))
        return
    mode, unset = environment.get("WANDB_MODE", ""), "unset WANDB_MODE"
    said = f"WANDB_MODE={mode}"
    if not mode and (mode := _mode_of_settings(environment)):
        said, unset = f"`wandb {mode}` was typed", "wandb online"
    known = bool(environment.get("WANDB_API_KEY")) or _logged_in(environment)
    if mode and mode not in WANDB_MODES:
        hints = ("export WANDB_MODE=offline, or unset WANDB_MODE",)
        yield Finding("warn", "W&B", f"{version}; {said} is none of its modes", hints)
    elif mode == "disabled":
        yield Finding("note", "W&B", f"{version}; {said}: nothing is logged", (unset,))
    elif mode in ("offline", "dryrun"):
        todo = ("wandb sync FOLDER sends a run later", unset)
        yield Finding("note", "W&B", f"{version}; {said}: logger=wandb logs on this machine", todo)
    elif known:
        yield Finding("ok", "W&B", f"{version}: logger=wandb logs to the service")
    else:
        level: Level = "warn" if mode else "ok"
        who = f"{said}, but nobody" if mode else "nobody"
        text = f"{version}; {who} has logged in: logger=wandb logs on this machine"
        yield Finding(level, "W&B", text, ("wandb login",))


def _mode_of_settings(environment: Mapping[str, str]) -> str:
    """What `wandb offline` or `wandb disabled` has left; "" for nothing."""
    home = Path(environment.get("WANDB_CONFIG_DIR") or "~/.config/wandb").expanduser()
    settings = configparser.ConfigParser(interpolation=None)
    with suppress(OSError, UnicodeDecodeError, configparser.Error):
        settings.read(home / "settings", encoding="utf-8")
    mode = settings.get("default", "mode", fallback="")
    return mode if mode in ("offline", "disabled") else ""


def _logged_in(environment: Mapping[str, str]) -> bool:
    """Whether there is an entry of the service, without a look at what it says."""
    try:
        hosts = netrc.netrc(environment.get("NETRC")).hosts
    except (OSError, netrc.NetrcParseError):
        return False
    server = urlsplit(environment.get("WANDB_BASE_URL", "")).hostname
    return server in hosts or "api.wandb.ai" in hosts
