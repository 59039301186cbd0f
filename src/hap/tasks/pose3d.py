"""3D pose and shape: the parameters of a body for a person in a picture, and how near its mesh is to the true one."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import nn
from torch.utils.data import default_collate

from hap.body.arrays import Bodies
from hap.body.camera import CROP_FOCAL, CROP_SIZE, project
from hap.body.drawing import draw_meshes
from hap.body.joints import LINKS30, SMPL30
from hap.body.model import GenderedBody
from hap.body.rotations import to_axis_angle, to_matrix
from hap.data.base import Dataset
from hap.data.people import PeopleInARow
from hap.data.pose3d import BodyRecords
from hap.errors import HapError, printable
from hap.losses import BodyPrediction
from hap.metrics.pose3d import BodyMetric
from hap.models.pose3d import BodyOutput, SixD, VPoser
from hap.plots import Tile, draw_pose, mosaic, tile_rows
from hap.pose.skeletons import Skeleton
from hap.tasks.base import Task, write_rows
from hap.tasks.pose3d_outputs import write_bodies
from hap.tasks.pose3d_targets import LargeBetas, MpiiFit, body_targets

log = logging.getLogger(__name__)

NUM_PEOPLE = 12  # of the best and of the worst, in a picture
TILE, FRAME = 192, (150, 150, 150)
CROP_CAMERA = (CROP_FOCAL, CROP_FOCAL, CROP_SIZE / 2, CROP_SIZE / 2)
UNITS = 64  # of the crop's side in which 2D joints are given
# Named as the joints of 2D pose, so that sides have their colours.
SKELETON = Skeleton(
    tuple(name.replace("L_", "left_").replace("R_", "right_") for name in SMPL30), links=LINKS30
)


class Pose3d(Task):
    """The network says pose, shape and place of a body in the camera of the crop. Its mesh is put together in float32
    and compared, in training with fitted bodies and joints, in evaluation with the true mesh.

    Args:
        model: `CrowdNet` or `Hmr2`: (images, joints, mask) -> `BodyOutput`.
        loss: on (`BodyPrediction`, `BodyTargets`).
        bodies: the body model; predictions are of the neutral one.
        input_norm: `imagenet`: mean and standard deviation, as in pre-training; `none`: pixel levels from 0 to 1.
        mpii_fit, large_betas: see `pose3d_targets.body_targets`.
        focal: focal length of the pictures of `hap predict` in pixels; None: not known, depths are then not metric.
        axes: of the meshes that `hap predict` writes, see `hap.body.drawing.write_obj`.
    """

    no_decay = frozenset({"pos_embed", "decoder.position"})
    whole_pictures = True  # boxes are regions of a picture, not images of their own
    takes_joints = True
    best_of, lowest_is_best = "PA-MPJPE", True
    metric: BodyMetric

    def __init__(
        self,
        *args: Any,
        loss: nn.Module,
        bodies: Bodies,
        input_norm: Literal["imagenet", "none"] = "imagenet",
        mpii_fit: MpiiFit = "fixed",
        large_betas: LargeBetas = "fixed",
        focal: float | None = None,
        axes: Literal["camera", "y_up"] = "camera",
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        choices = {
            "task.input_norm": (input_norm, ("imagenet", "none")),
            "task.mpii_fit": (mpii_fit, ("fixed", "official", "off")),
            "task.large_betas": (large_betas, ("fixed", "official")),
            "axes": (axes, ("camera", "y_up")),
        }
        for key, (value, allowed) in choices.items():
            if value not in allowed:
                raise HapError(f"{key}={value}: {' or '.join(allowed)}")
        if focal is not None and focal <= 0:
            raise HapError(f"focal={focal}: pixels, above 0")
        self.loss, self.body, self.input_norm = loss, GenderedBody(bodies), input_norm
        self.mpii_fit, self.large_betas, self.focal, self.axes = mpii_fit, large_betas, focal, axes

    def forward(self, batch: dict[str, torch.Tensor]) -> BodyOutput:
        images = batch["image"]
        images = self.normalize(images) if self.input_norm == "imagenet" else images / 255
        return self.model(images, batch["input_joints"], batch["input_mask"])

    def losses(self, outputs: BodyOutput, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if not self.training:
            return {}  # what is evaluated has no fits, but a truth
        with torch.autocast(self.device.type, enabled=False):
            targets = body_targets(batch, self.body, self.mpii_fit, self.large_betas)
            return self.loss(self.prediction(outputs), targets)

    def prediction(self, outputs: BodyOutput) -> BodyPrediction:
        """With the joints of the mesh. Float32: outside of autocast alone."""
        mesh = self.body.neutral(outputs.rotations, outputs.betas, outputs.translation)
        joints = self.body.joints30 @ mesh.vertices
        camera = torch.tensor(CROP_CAMERA, device=joints.device)
        joints_2d = project(joints, camera, eps=self.model.depth_eps) * (UNITS / CROP_SIZE)
        found = outputs.joint_coord
        return BodyPrediction(
            outputs.rotations.float(),
            outputs.betas.float(),
            joints - joints[:, :1],
            joints_2d,
            None if found is None else self.model.to_units(found),
        )

    def predictions(self, outputs: BodyOutput, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`pose` (N, 72), axis-angle vectors; `betas` (N, 10); `translation` (N, 3), in the crop's camera; `center`
        (N, 2), `side` (N,), the crop in pixels of the picture; `picture` (N, 2), its width and height."""
        said = {
            "pose": to_axis_angle(outputs.rotations.float()).flatten(1),
            "betas": outputs.betas,
            "translation": outputs.translation,
        }
        return said | {name: batch[name] for name in ("center", "side", "picture")}

    def update_metrics(self, outputs: BodyOutput, batch: dict[str, torch.Tensor]) -> None:
        with torch.autocast(self.device.type, enabled=False):
            predicted = self.body.neutral(outputs.rotations, outputs.betas).vertices
            self.metric.update(predicted, self.truth(batch), batch["index"])

    def truth(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """True meshes (N, V, 3), in the camera of the picture."""
        rotations = to_matrix(batch["pose"].float().unflatten(1, (24, 3)))
        return self.body(rotations, batch["betas"].float(), batch["trans"].float(), batch["gender"])

    def pictures(self, batch: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
        """Crops with the joints that the network is given, if it wants any, and with the mesh."""
        columns = self._views(batch, self(batch))
        titles = ["input joints"] * self.model.needs_joints + ["mesh"]
        return {"bodies": mosaic([column[-len(titles) :] for column in columns], titles)}

    def _views(self, batch: dict[str, torch.Tensor], outputs: BodyOutput) -> list[list[np.ndarray]]:
        """Of each person the crop with the input joints, and with the predicted mesh."""
        with torch.autocast(self.device.type, enabled=False):
            meshes = self.body.neutral(outputs.rotations, outputs.betas, outputs.translation).vertices
        points = torch.cat([batch["input_joints"], batch["input_mask"][..., None]], dim=2).cpu().numpy()
        views = []
        for image, joints, mesh in zip(
            batch["image"].movedim(1, -1).cpu().numpy(), points, meshes.float().cpu().numpy(), strict=True
        ):
            scale = image.shape[0] / UNITS
            given = draw_pose(image, joints * [scale, scale, 1], SKELETON)
            camera = np.array(CROP_CAMERA) * image.shape[0] / CROP_SIZE
            views.append([given, draw_meshes(image, [mesh], self.faces, camera)])
        return views

    @property
    def faces(self) -> np.ndarray:
        return self.body.bodies.neutral.faces

    def write_predictions(self, rows: dict[str, torch.Tensor], records: Sequence[Any], folder: Path) -> None:
        """See `pose3d_outputs.write_bodies`."""
        given: Any = self.trainer.datamodule.records("predict")  # type: ignore[attr-defined]
        pictures = getattr(given, "sources", given)
        write_bodies(folder, records, rows, self.body, pictures, self.focal, self.axes)

    def report(self, folder: Path, dataset: Dataset) -> dict[str, np.ndarray]:
        """`per_joint.csv`, `per_sequence.csv`, and the people who were found best and worst: the input, the
        prediction, the truth."""
        for name, rows in (
            ("per_joint.csv", self.metric.per_joint()),
            ("per_sequence.csv", self.metric.per_sequence()),
        ):
            if rows:
                write_rows(folder / name, rows)
        pictures = {"best_people": self._people(dataset, True), "worst_people": self._people(dataset, False)}
        return {name: picture for name, picture in pictures.items() if picture is not None}

    @torch.no_grad()
    def _people(self, dataset: Dataset, best: bool) -> np.ndarray | None:
        """None where no picture can be read."""
        tiles = []
        for index, aligned, error in self.metric.ranked(NUM_PEOPLE, best):
            if dataset.problem(index) is not None:
                continue
            batch = {k: v.to(self.device) for k, v in default_collate([dataset[0, index]]).items()}
            (views,) = self._views(batch, self(batch))
            views.append(self._true_view(dataset, index, batch))
            views = [cv2.resize(view, (TILE, TILE), interpolation=cv2.INTER_AREA) for view in views]
            name = printable(dataset.records[index].name)
            texts = ("input",), (f"PA {aligned:.0f} mm", f"MPJPE {error:.0f} mm"), ("truth", name[-28:])
            tiles += [Tile(view, FRAME, text) for view, text in zip(views, texts, strict=True)]
        return tile_rows([tiles[i : i + 9] for i in range(0, len(tiles), 9)]) if tiles else None

    def _true_view(self, dataset: Dataset, index: int, batch: dict[str, torch.Tensor]) -> np.ndarray:
        """The true mesh in the same crop, by the camera of the picture."""
        records: Any = dataset.records
        crop = batch["image"][0].movedim(0, -1).cpu().numpy()
        scale = crop.shape[0] / float(batch["side"])
        corner = batch["center"][0].cpu().numpy() - float(batch["side"]) / 2
        camera = records.camera[index].copy()
        camera[2:] -= corner
        return draw_meshes(crop, [self.truth(batch)[0].cpu().numpy()], self.faces, scale * camera)

    def _check_ready(self) -> None:
        decoder = getattr(self.model, "pose_decoder", None)
        if isinstance(decoder, VPoser):
            decoder.check()

    def on_fit_start(self) -> None:  # before the first pictures
        self._check_ready()
        if isinstance(getattr(self.model, "pose_decoder", None), SixD):
            rank_zero_only(log.info)(
                "six numbers say the turn of each joint; as published: task.model.vposer=FILE"
            )
        records: Any = self.trainer.datamodule.records("train")  # type: ignore[attr-defined]
        parts = records.parts if isinstance(records, PeopleInARow) else {records.kind.name: records}
        if self.model.needs_joints and (
            empty := [name for name, part in parts.items() if not part.joints[..., 2].any()]
        ):
            raise HapError(
                f"the network of experiment=pose3d_3dpw is given 2D joints, and {', '.join(empty)} has none: add "
                "keypoints, or take experiment=pose3d_hmr2"
            )

    def _start_scores(self, records: BodyRecords) -> None:
        self._check_ready()
        self.metric.use(self.body.joints30, self.body.h36m)
        self.metric.records = records

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self._start_scores(self.trainer.datamodule.records("val"))  # type: ignore[attr-defined]

    def on_test_epoch_start(self) -> None:
        super().on_test_epoch_start()
        datamodule: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        self._start_scores(datamodule.records(datamodule.test_split))

    def on_predict_start(self) -> None:
        self._check_ready()
        records: Any = self.trainer.datamodule.records("predict")  # type: ignore[attr-defined]
        if self.model.needs_joints and getattr(records, "joints", None) is None:
            raise HapError(
                "this network is given the 2D joints of each person: keypoints=FILE, the poses.json that hap predict "
                "writes with a model of 2D pose"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        bodies = self.body.bodies
        checkpoint["body"] = {"name": bodies.name, "checksum": bodies.checksum}

    def check_checkpoint(self, path: Path, checkpoint: Mapping[str, Any]) -> None:
        before, bodies = checkpoint.get("body"), self.body.bodies
        if before is not None and before["checksum"] != bodies.checksum:
            raise HapError(
                f"{path} was trained with the body {printable(before['name'])}, here it is {bodies.name}, of "
                "other shapes: body=smpl body.folder=FOLDER, or body=drawn, as in training"
            )

    def protocol(self) -> dict[str, Any]:
        if self.metric.records is None:  # a training that is shorter than what lies between validations
            return {}
        return {"body": self.body.bodies.name, **self.metric.protocol()}
