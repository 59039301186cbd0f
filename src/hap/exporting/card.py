"""README.md of an export: what it is, how it is opened without hap, where it is from and under which licence."""

import re
from collections.abc import Mapping

from hap import __version__
from hap.errors import printable
from hap.exporting.formats import licence_id, metadata_of, timm_arguments
from hap.exporting.networks import Network
from hap.exporting.source import GRAPHS, Source

_CARD = """---
license: {licence_id}
tags: [people, vision-transformer]
---
# {title}

{parameters:,} parameters, written by hap {version} as `format={kind}`.

```python
{use}
```

{inputs} {images}

| | |
| --- | --- |
{rows}

Licence of the weights that it is, or that its training began with: {licence}. The data sets that it was trained on have
terms of their own.
"""

_PIXELS = "`image` is uint8 (N, 3, {0}, {1}), RGB, for any number N of images; it is normalised inside."
_NORMALISED = (
    "Images are float (N, 3, {0}, {1}), RGB, normalised with ImageNet's mean and standard deviation; timm's transform "
    "makes them so."
)

_USE = {
    "timm": """import timm

model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
feature = model(transform(picture)[None])  # of a PIL image, (1, {width})""",
    "safetensors": """import timm

model = timm.create_model("{name}", num_classes=0, {arguments}, checkpoint_path="model.safetensors")""",
    "hap": """import torch

state = torch.load("hap.pth", weights_only=True)["model"]  # what the official fine-tuning code reads""",
    "onnx": """import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
{outputs} = session.run(None, {{{feed}}})
about = session.get_modelmeta().custom_metadata_map""",
    "torch_export": """import torch

model = torch.export.load("model.pt2").module()
results = model({inputs})  # a dict""",
}


def card(source: Source, network: Network, kind: str, differences: Mapping[str, float], half: bool) -> str:
    """Markdown. What comes from outside is shown on one line and means nothing in Markdown.

    Args:
        kind: the format.
        differences: as of `check.compare`.
    """
    name, arguments = timm_arguments(source)
    inputs = list(network.inputs(network.mean.new_empty(1, 3, *network.size)))
    use = _USE[kind].format(
        name=name,
        arguments=", ".join(f"{key}={value!r}" for key, value in arguments.items()),
        width=source.model.embed_dim,
        inputs=", ".join(inputs),
        feed=", ".join(f'"{name}": {name}' for name in inputs),
        outputs=", ".join(network.outputs) + ("," if len(network.outputs) == 1 else ""),
    )
    rows = {**metadata_of(source, network), **(network.outputs if kind in GRAPHS else {})}
    if half:
        rows["precision"] = "16 bits; the last layers float32"
    unit = "of the largest value" if half else "absolute"
    rows |= {
        f"largest difference to the model, {what} images": f"{value:.1e} {unit}"
        for what, value in differences.items()
    }
    return _CARD.format(
        licence_id=licence_id(source.licence),
        title=network.title,
        parameters=sum(p.numel() for p in source.model.parameters()),
        version=__version__,
        kind=kind,
        use=use,
        inputs=(_PIXELS if kind in GRAPHS else _NORMALISED).format(*network.size),
        images=network.images,
        rows="\n".join(f"| {_cell(key)} | {_cell(value)} |" for key, value in rows.items()),
        licence=_cell(source.licence or "not recorded"),
    )


def _cell(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", printable(text))
