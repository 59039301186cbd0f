"""One function for each format: writes into a folder, opens what it has written, and hands over how to run that."""

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import save
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from hap.errors import HapError
from hap.exporting.networks import Network
from hap.exporting.source import Source
from hap.models.checkpoint import HAP_GRID, load_weights
from hap.models.mim import MaskedAutoencoder
from hap.models.vit import ViT
from hap.models.weight_names import LICENCES

# Inputs of a network by name -> its outputs by name.
Run = Callable[[Mapping[str, Tensor]], Mapping[str, Any]]

EXTRAS = ("onnx", "onnxscript", "onnxruntime")
EXAMPLES = 2  # images of the batch that is traced: one alone would be taken for the only number
# timm's names of plain ViTs: patch size, width, blocks, heads.
ARCHITECTURES = {
    "vit_tiny_patch16_224": (16, 192, 12, 3),
    "vit_small_patch16_224": (16, 384, 12, 6),
    "vit_base_patch16_224": (16, 768, 12, 12),
    "vit_large_patch16_224": (16, 1024, 24, 16),
}


def metadata_of(source: Source, network: Network) -> dict[str, str]:
    """Texts beside the weights, in .safetensors, ONNX and `torch.export` alike."""
    names = {} if network.names is None else {network.names: list(source.labels[network.names])}
    thresholds = {"thresholds": list(source.thresholds)} if source.thresholds else {}
    return {
        "size": "{}x{}".format(*network.size),
        "grid": "{}x{}".format(*source.model.grid),
        "licence": source.licence or "not recorded",
        **source.facts,
        **{key: json.dumps(value) for key, value in (names | thresholds).items()},
    }


def encoder_state(model: ViT) -> dict[str, Tensor]:
    """The encoder in timm's names, contiguous float32."""
    state = model.encoder_state_dict() if isinstance(model, MaskedAutoencoder) else model.state_dict()
    return {name: value.float().contiguous() for name, value in state.items()}


def sizes_of(model: ViT) -> dict[str, Any]:
    """The arguments of `ViT` that make this one, but for the size of its images."""
    block: Any = model.blocks[0]
    return {
        "patch_size": model.patch_embed.patch_size[0],
        "embed_dim": model.embed_dim,
        "depth": model.depth,
        "num_heads": block.attn.num_heads,
        "mlp_ratio": block.mlp.fc1.out_features / model.embed_dim,
    }


def timm_arguments(source: Source) -> tuple[str, dict[str, Any]]:
    """Name of timm's model, and the arguments with which it is this one."""
    sizes = sizes_of(source.model)
    usual = {name: dict(zip(sizes, (*own, 4.0), strict=True)) for name, own in ARCHITECTURES.items()}
    name = next((name for name, own in usual.items() if own == sizes), "vit_base_patch16_224")
    other = {key: value for key, value in sizes.items() if value != usual[name][key]}
    pool = (
        {"global_pool": "avg", "fc_norm": False} if source.pools_patches else {}
    )  # the norm before the mean
    return name, {"img_size": source.size, **other, **pool}


def write_safetensors(folder: Path, source: Source, network: Network) -> Run:
    """`model.safetensors`: the parameters of timm's model of that size."""
    path = folder / "model.safetensors"
    path.write_bytes(save(encoder_state(source.model), metadata_of(source, network)))
    name, arguments = timm_arguments(source)
    return _of_timm(network, name, num_classes=0, checkpoint_path=str(path), **arguments)


def write_timm(folder: Path, source: Source, network: Network) -> Run:
    """`model.safetensors` and `config.json`, which timm opens as `local-dir:FOLDER`."""
    write_safetensors(folder, source, network)
    name, arguments = timm_arguments(source)
    size = [3, *source.size]
    config = {
        "architecture": name,
        "num_classes": 0,
        "num_features": source.model.embed_dim,
        "global_pool": arguments.get("global_pool", "token"),
        "model_args": arguments,
        "pretrained_cfg": {
            "num_classes": 0,
            "input_size": size,
            "fixed_input_size": True,
            "crop_pct": 1.0,
            "crop_mode": "squash",  # people are squeezed into the size, not cut
            "interpolation": "bilinear" if source.pools_patches else "bicubic",
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "license": licence_id(source.licence),
        },
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return _of_timm(network, f"local-dir:{folder}", pretrained=True)


def licence_id(licence: str | None) -> str:
    """Its short name, as timm and the hub have it."""
    return next((name for name, text in LICENCES.items() if text == licence), "other")


def _of_timm(network: Network, name: str, **arguments: Any) -> Run:
    with _exporting():
        model: Any = timm.create_model(name, **arguments).eval()
    return lambda inputs: {"tokens": model.forward_features(network.normalize(inputs["image"]))}


def write_hap(folder: Path, source: Source, network: Network) -> Run:
    """`hap.pth`, as the official pre-training leaves it: the entries `model` and `arch`; of a pre-training with its
    decoder."""
    model = source.model
    if model.grid != HAP_GRID:
        raise HapError(
            f"format=hap: the official code takes positions for {HAP_GRID[0]} x {HAP_GRID[1]} patches, and these are "
            "{} x {}: add size={}x{}".format(
                *model.grid, *(n * model.patch_embed.patch_size[0] for n in HAP_GRID)
            )
        )
    path = folder / "hap.pth"
    state = {name: value.float().contiguous() for name, value in model.state_dict().items()}
    name = timm_arguments(source)[0].removesuffix("_224")
    content = {"model": state, "arch": f"pose_mae_{name}", "grid": "{}x{}".format(*HAP_GRID)}
    path.write_bytes(_saved(torch.save, content | ({"licence": source.licence} if source.licence else {})))
    again = ViT(img_size=source.size, **sizes_of(model)).eval()
    load_weights(again, path, "hap")
    return lambda inputs: {"tokens": again.features(network.normalize(inputs["image"]))}


def write_torch_export(folder: Path, source: Source, network: Network) -> Run:
    """`model.pt2`, a program of `torch.export`."""
    path = folder / "model.pt2"
    inputs = _examples(network)
    with _exporting():
        program = torch.export.export(network, tuple(inputs.values()), dynamic_shapes=_shapes(inputs))
        about = {"hap.json": json.dumps(metadata_of(source, network))}
        path.write_bytes(_saved(torch.export.save, program, extra_files=about))
        again = torch.export.load(path).module()
    return lambda inputs: again(*inputs.values())


def write_onnx(folder: Path, source: Source, network: Network) -> Run:
    """`model.onnx`; from 2 GB its weights are `model.onnx.data`."""
    if missing := [name for name in EXTRAS if find_spec(name) is None]:
        raise HapError(f'format=onnx needs {", ".join(missing)}: pip install "hap[export]"')
    import onnxruntime

    path = folder / "model.onnx"
    inputs = _examples(network)
    with _exporting():
        program = torch.onnx.export(
            network,
            tuple(inputs.values()),
            input_names=list(inputs),
            output_names=list(network.outputs),
            dynamic_shapes=_shapes(inputs),
            opset_version=20,  # the first with samples of volumes, which 3D pose takes
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        program.model.metadata_props.update(metadata_of(source, network) | dict(network.outputs))
        program.save(path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    if fixed := [i.name for i in session.get_inputs() if not isinstance(i.shape[0], str)]:
        raise HapError(f"the number of images became fixed in the file (input {fixed[0]})")
    names = [output.name for output in session.get_outputs()]

    def run(inputs: Mapping[str, Tensor]) -> Mapping[str, np.ndarray]:
        values = session.run(names, {name: value.numpy() for name, value in inputs.items()})
        return dict(zip(names, values, strict=True))

    return run


def _saved(function: Callable[..., None], content: Any, **options: Any) -> memoryview:
    """What a function of PyTorch's writes, which to a full disk is an error like all others: not as it writes."""
    file = io.BytesIO()
    function(content, file, **options)
    return file.getbuffer()


def _examples(network: Network) -> dict[str, Tensor]:
    return network.inputs(torch.zeros(EXAMPLES, 3, *network.size, dtype=torch.uint8))


def _shapes(inputs: Mapping[str, Tensor]) -> tuple[dict[int, Any], ...]:
    images = torch.export.Dim("N", min=1)
    return tuple({0: images} for _ in inputs)


@contextmanager
def _exporting() -> Iterator[None]:
    """Without what the exporters tell of their own affairs, at length; what they refuse is a message."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (HapError, OSError):
        raise
    except Exception as error:  # of any type: a limit of the exporter's, or of the runtime's
        raise HapError(f"this model cannot be exported: {str(error).strip().splitlines()[0]}") from error
    finally:
        logging.disable(before)


FORMATS: dict[str, Callable[[Path, Source, Network], Run]] = {
    "timm": write_timm,
    "safetensors": write_safetensors,
    "hap": write_hap,
    "onnx": write_onnx,
    "torch_export": write_torch_export,
}
