"""From what `weights` says to a file: a path, or a name that stands for a file in a cache, on the internet or here.

| `weights` | file |
| --- | --- |
| FILE | itself |
| `drawn` | the small one in this package, trained on drawn people |
| `timm:NAME` | of timm's pre-trained model NAME |
| `hf:OWNER/REPO[/FILE]` | of a repository of the Hugging Face hub |
| `https://...` | downloaded once |
"""

import difflib
import hashlib
import http.client
import shutil
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import timm
import torch
from filelock import FileLock
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from hap.errors import HapError

DRAWN = Path(__file__).parents[1] / "weights" / "hap_drawn.safetensors"
# What a repository's weights are usually called, the safe format first.
HUB_FILES = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")
UNKNOWN_LICENCE = "unknown: see its page"
LICENCES = {  # by the names that timm and the hub have for them
    "cc-by-nc-4.0": "CC BY-NC 4.0 (no commercial use)",
    "apache-2.0": "Apache-2.0",
    "mit": "MIT",
}
_MAE_FILES = "mae_pretrain_vit_"  # as MAE's authors name them


@dataclass(frozen=True)
class Located:
    """A file that is there, and what its name tells: the licence, and what to know before it is used."""

    path: Path
    licence: str | None = None
    note: str = ""


def locate(weights: str | Path, sha256: str | None = None) -> Located:
    """The file that `weights` means. What a cache has is taken as it is, without a look at the network.

    Args:
        sha256: what a download must have before it enters the cache.

    Raises:
        HapError: there is no such name, or neither cache nor network has the file.
    """
    name = str(weights)
    if name == "drawn":
        if not DRAWN.is_file():
            raise HapError(
                f"weights=drawn: this copy of hap comes without {DRAWN}; train it or give weights=FILE"
            )
        return Located(DRAWN)
    scheme, colon, rest = name.partition(":")
    if colon and scheme == "timm":
        return _timm(rest, sha256)
    if colon and scheme == "hf":
        return _hub(rest)
    if colon and scheme in ("https", "http"):
        return Located(_from_url(name, sha256), _licence_of_file(urlsplit(name).path) or UNKNOWN_LICENCE)
    path = Path(name).expanduser()
    if not path.exists():
        raise HapError(
            f"{name}: no such weight file. Names are drawn, timm:NAME, hf:OWNER/REPO[/FILE] and https://..."
        )
    return Located(path, _licence_of_file(path.name))


def _licence_of_file(path: str) -> str | None:
    known = PurePosixPath(path).name.startswith(_MAE_FILES)
    return LICENCES["cc-by-nc-4.0"] if known else None


def _timm(name: str, sha256: str | None) -> Located:
    """Where timm would find them: on the hub, else at the authors' address."""
    known = _known_to_timm(name)
    if known is None:
        names = timm.list_pretrained("*vit*")
        close = difflib.get_close_matches(name, names, n=3, cutoff=0.5) or names[:3]
        raise HapError(f"timm has no pre-trained model {name!r}; did you mean {' or '.join(close)}?")
    repo, url = known.hf_hub_id, known.url if isinstance(known.url, str) else known.url[0]
    files = (known.hf_hub_filename,) if known.hf_hub_filename else HUB_FILES
    licence, note = _licence_of_timm(name), ""
    if tuple(known.mean) != IMAGENET_DEFAULT_MEAN or tuple(known.std) != IMAGENET_DEFAULT_STD:
        note = f"trained on images of mean {known.mean} and std {known.std}; here they have ImageNet's"
    cached = [_cached_on_hub(repo, files)] if repo else []
    if url:
        cached.append(_checkpoints() / PurePosixPath(urlsplit(url).path).name)  # timm's own cache
    for path in cached:
        if path is not None and path.is_file():
            return Located(path, licence, note)
    failed = []
    for get in [lambda: _from_hub(repo, files)] * bool(repo) + [lambda: _from_url(url, sha256)] * bool(url):
        try:
            return Located(get(), licence, note)
        except HapError as error:
            failed.append(str(error))
    raise HapError("\n".join(failed))


def _known_to_timm(name: str) -> Any:
    try:
        return timm.models.get_pretrained_cfg(name)
    except RuntimeError:  # another tag of a known model
        return None


def _licence_of_timm(name: str) -> str:
    licence = getattr(_known_to_timm(name), "license", None)
    return LICENCES.get(licence or "", licence or UNKNOWN_LICENCE)


def _hub(name: str) -> Located:
    owner, slash, rest = name.partition("/")
    repo, _, file = rest.partition("/")
    if not (owner and slash and repo):
        raise HapError(f"weights=hf:{name}: give weights=hf:OWNER/REPO or weights=hf:OWNER/REPO/FILE")
    licence = _licence_of_timm(repo) if owner == "timm" else UNKNOWN_LICENCE
    files = (file,) if file else HUB_FILES
    repo = f"{owner}/{repo}"
    return Located(_cached_on_hub(repo, files) or _from_hub(repo, files), licence)


def _cached_on_hub(repo: str, files: Sequence[str]) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError

    for file in files:
        try:
            return Path(hf_hub_download(repo, file, local_files_only=True))
        except EntryNotFoundError:
            continue
        except HFValidationError as error:
            raise HapError(f"{repo!r} is no name of a repository: {error}") from None
    return None


def _from_hub(repo: str, files: Sequence[str]) -> Path:
    from huggingface_hub import constants, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

    for file in files:
        try:
            return Path(hf_hub_download(repo, file))
        except LocalEntryNotFoundError as error:
            raise HapError(
                f"{repo} is neither in the cache ({constants.HF_HUB_CACHE}) nor to be had from the hub "
                f"({_reason(error)}). Fetch {hf_hub_url(repo, file)} elsewhere and give weights=FILE, or copy the "
                f"cache's folder models--{repo.replace('/', '--')} from a machine that has it"
            ) from error
        except EntryNotFoundError:
            continue
        except RepositoryNotFoundError as error:
            raise HapError(
                f"the hub has no repository {repo}, or not for you: see `hf auth login`"
            ) from error
        except Exception as error:  # the library passes on what its network library raises
            raise HapError(f"the hub does not give {repo}: {_reason(error)}") from error
    raise HapError(f"{repo} on the hub has no {' or '.join(files)}: give weights=hf:{repo}/FILE")


def _reason(error: BaseException) -> str:
    """What lies at the bottom of a chain of exceptions, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _checkpoints() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _from_url(url: str, sha256: str | None) -> Path:
    """Kept beside what torch.hub downloads. Two addresses may end in the same name, so a part of a checksum of the
    address is in front."""
    if url.startswith("http:") and not sha256:
        raise HapError(
            f"{url}: anybody on the way can change what http brings: give weights_sha256=... or https"
        )
    name = PurePosixPath(urlsplit(url).path).name or "weights"
    path = _checkpoints() / f"{hashlib.sha256(url.encode()).hexdigest()[:8]}-{name}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):  # of all ranks, one downloads
            if not path.is_file():
                _download(url, path, sha256)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise HapError(
            f"{url} cannot be downloaded ({_reason(error)}), and the cache does not have it. Fetch it elsewhere and "
            f"give weights=FILE, or put it at {path}"
        ) from error
    return path


def _download(url: str, path: Path, sha256: str | None) -> None:
    """Under another name until it is whole."""
    partial = path.with_name(f"{path.name}.partial")
    request = urllib.request.Request(url, headers={"User-Agent": "hap"})
    try:
        with urllib.request.urlopen(request, timeout=60) as reply, partial.open("wb") as file:
            shutil.copyfileobj(reply, file, 1 << 20)
            expected = reply.headers.get("Content-Length")
        size = partial.stat().st_size
        if expected is not None and int(expected) != size:
            raise HapError(
                f"{url}: the download broke off after {size:,} of {int(expected):,} bytes: try again"
            )
        check_sha256(partial, sha256, url)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def check_sha256(path: Path, sha256: str | None, name: str) -> str:
    """The checksum of a file. Raises HapError if it is not the one that was asked for."""
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise HapError(f"{path}: cannot be read: {error.strerror}") from error
    if sha256 and found != sha256.lower():
        raise HapError(
            f"{name}: its SHA-256 is {found}, not {sha256.lower()} as weights_sha256 says: another file"
        )
    return found
