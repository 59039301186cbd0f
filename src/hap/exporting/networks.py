"""Models as other programs run them: pixel levels in, named results out, the normalisation inside.

Legend: N images of H x W pixels, L patches, D width of the encoder, A attributes, K joints.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hap.body.joints import SMPL30
from hap.data.transforms import PIXEL_MEAN, PIXEL_STD
from hap.errors import HapError
from hap.exporting.source import Source
from hap.tasks.attribute import Attribute
from hap.tasks.pose2d import Pose2d
from hap.tasks.pose3d import UNITS, Pose3d
from hap.tasks.reid import Reid
from hap.tasks.text_reid import TextReid

# Layers that have float32 whatever the rest has, as in training: see `in_float32`.
_FLOAT32 = ("head", "bn", "conv_fc", "conv_bn", "projection")


class Network(nn.Module):
    """
    Args:
        source: what is exported.

    Attributes:
        title: what it is, for its card.
        images: what an image has to show, for its card.
        outputs: what each is, by name.
        names: the labels that name the channels of the output, as of `Task.labels`; or None.
        size: height and width of the images.
    """

    title: ClassVar[str]
    images: ClassVar[str] = "Images are people, squeezed to that size."
    outputs: ClassVar[Mapping[str, str]]
    names: ClassVar[str | None] = None
    model: Any
    mean: Tensor
    std: Tensor

    def __init__(self, source: Source):
        super().__init__()
        self.model, self.size = source.model, source.size
        self.register_buffer("mean", torch.tensor(PIXEL_MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(PIXEL_STD).view(3, 1, 1))

    def normalize(self, image: Tensor) -> Tensor:
        """uint8 (N, 3, H, W), RGB -> what the model takes, in its precision."""
        return ((image.float() - self.mean) / self.std).to(self.model.pos_embed.dtype)

    def inputs(self, image: Tensor) -> dict[str, Tensor]:
        """What is given for images (N, 3, H, W), in order."""
        return {"image": image}

    def to_half(self) -> None:
        """Weights and arithmetic in 16 bits, but for the last layers; normalisation and results stay float32."""
        self.model.half()
        for name in _FLOAT32:
            if hasattr(self.model, name):
                getattr(self.model, name).float()


class Encoder(Network):
    title = "Encoder of images of people, a plain ViT"
    outputs = {"tokens": "float32 (N, 1 + L, D): class token, then patches row by row, after the final norm"}  # noqa: RUF012

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"tokens": self.model.features(self.normalize(image)).float()}


class Embedding(Network):
    """Of re-identification; of length 1 where the cosine ranks, as `hap predict` writes it."""

    title = "Person re-identification"
    outputs = {"embedding": "float32 (N, D): people are compared by its distance"}  # noqa: RUF012

    def __init__(self, source: Source):
        super().__init__(source)
        self.distance = source.options["metric"]["distance"]

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        embedding = self.model(self.normalize(image)).embedding.float()
        return {"embedding": F.normalize(embedding) if self.distance == "cosine" else embedding}


class ImageEmbedding(Network):
    """Of text-to-image re-identification: the side of the images."""

    title = "Images for text-to-image person re-identification"
    outputs = {  # noqa: RUF012
        "embedding": "float32 (N, D), of length 1, to be multiplied by that of a sentence: hap.load(FILE).embed_texts"
    }

    def __init__(self, source: Source):
        super().__init__(source)
        for name in ("text", "lstm", "text_projection", "classifier"):
            setattr(self.model, name, None)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"embedding": F.normalize(self.model.image_embedding(self.normalize(image)))}


class Probabilities(Network):
    title, names = "Attributes of people", "attributes"
    outputs = {"probability": "float32 (N, A): of yes, in the order of the names"}  # noqa: RUF012

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"probability": self.model(self.normalize(image)).sigmoid()}


class HeatMaps(Network):
    """Of the image alone, not of its mirror image."""

    title, names = "2D pose of people", "joints"
    images = (
        "Images are cut out around people: boxes made as wide or high as the image is, and a quarter larger."
    )
    outputs = {"heatmaps": "float32 (N, K, H / 4, W / 4): one for each joint, in the order of the names"}  # noqa: RUF012

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        (heatmaps,) = self.model(self.normalize(image), 0)
        return {"heatmaps": heatmaps}


class Bodies(Network):
    title = "3D pose and shape of people"
    images = "Images are squares around the boxes of people, of 1.25 times the longer side."
    outputs = {  # noqa: RUF012
        "rotations": "float32 (N, 24, 3, 3): of SMPL's joints, the root's in the frame of the crop's camera",
        "betas": "float32 (N, 10): shape",
        "translation": "float32 (N, 3): metres, in the frame of the crop's camera",
    }

    def __init__(self, source: Source):
        super().__init__(source)
        self.size = (self.size[0], self.size[0])  # the model takes the middle columns itself
        if source.options.get("input_norm") == "none":
            self.mean, self.std = torch.zeros_like(self.mean), torch.full_like(self.std, 255.0)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return self._bodies(image, None, None)

    def _bodies(self, image: Tensor, joints: Tensor | None, mask: Tensor | None) -> dict[str, Tensor]:
        found = self.model(self.normalize(image), joints, mask)
        return {name: getattr(found, name) for name in self.outputs}

    def to_half(self) -> None:
        raise HapError("half=true: rotations and metres need more than 11 bits; export 3D pose in float32")


class BodiesOfJoints(Bodies):
    images = (
        f"{Bodies.images} `joints` is float32 (N, 30, 2), the person's 2D joints, x, y in 64ths of the square; `mask` "
        "float32 (N, 30), 1 where a joint is known. Their order: " + ", ".join(SMPL30) + "."
    )

    def inputs(self, image: Tensor) -> dict[str, Tensor]:
        """Joints in places of their own for each image, one in four missing."""
        generator = torch.Generator().manual_seed(0)
        joints = torch.rand(len(image), 30, 2, generator=generator) * UNITS
        mask = (torch.rand(len(image), 30, generator=generator) > 0.25).float()
        return {"image": image, "joints": joints, "mask": mask}

    def forward(self, image: Tensor, joints: Tensor, mask: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        return self._bodies(image, joints, mask)


_OF_TASKS: dict[type, type[Network]] = {
    Reid: Embedding,
    Attribute: Probabilities,
    Pose2d: HeatMaps,
    Pose3d: Bodies,
    TextReid: ImageEmbedding,
}


def network_of(source: Source) -> Network:
    """What is run of a source."""
    if source.task is None or not source.whole:
        return Encoder(source).eval()
    kind = next((kind for task, kind in _OF_TASKS.items() if issubclass(source.task, task)), None)
    if kind is None:
        raise HapError(
            f"the model of {source.task.__name__} is not exported; encoder=true exports its encoder"
        )  # type: ignore[union-attr]
    if kind is Bodies and source.model.needs_joints:  # type: ignore[attr-defined]
        kind = BodiesOfJoints
    return kind(source).eval()
