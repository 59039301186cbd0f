"""2D pose: where the joints of a person are, as one heat map for each; from one data set or from three together."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch

from hap.data.base import Dataset
from hap.data.boxes import Boxes
from hap.data.pose import PoseRecords
from hap.errors import HapError, printable
from hap.losses import HeatmapLoss
from hap.metrics.pose import PoseMetric
from hap.models.pose import PoseViT
from hap.plots import Tile, close_up, draw_pose, mosaic, tile_rows
from hap.pose.codecs import Codec
from hap.pose.skeletons import Skeleton, get_skeleton, of_labels
from hap.pose.truth import MpiiTruth
from hap.tasks.base import Task, write_rows
from hap.tasks.pose2d_outputs import check_luperson, write_luperson, write_poses
from hap.tasks.pose2d_results import read_results, write_results

log = logging.getLogger(__name__)

NUM_PEOPLE = 24  # of the best and of the worst, in a picture, each beside its truth
TILE, FRAME = (224, 168), (150, 150, 150)


class Pose2d(Task):
    """Squared error of heat maps. Evaluation averages those of an image and of its mirror image, and scores the joints
    that they decode to in the whole picture.

    With several data sets (`model.num_sources`) each has a head and an expert in every block; a batch mixes people of
    all, and its loss is the sum over the heads. What is evaluated is the first: the others are split off into models
    of their own (`scripts/split_pose2d.py`).

    Args:
        model: returns one (N, K, h, w) for each head.
        loss: of heat maps, on (heat maps, target, weight).
        codecs: how joints become heat maps and back, one for each data set.
        skeleton: joints of the first data set, by name; null takes those of the data or of the checkpoint.
        flip_test: whether to average with the mirror image.
        output: what `hap predict` writes beside its tables: `luperson`, pose files to pre-train with.
    """

    counts = {"num_joints": ("joints", "heads.0.final_layer.bias")}  # noqa: RUF012 - never changed
    no_decay = frozenset({"pos_embed"})
    whole_pictures = True  # boxes are regions of a picture, not images of their own
    metric: PoseMetric
    model: PoseViT

    def __init__(
        self,
        *args: Any,
        loss: HeatmapLoss,
        codecs: Sequence[Codec],
        skeleton: str | Mapping[str, Any] | None = None,
        flip_test: bool = True,
        output: Literal["luperson"] | None = None,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        if len(codecs) != len(self.model.heads):
            raise HapError(
                f"task.codecs: {len(codecs)} for {len(self.model.heads)} heads (task.model.num_sources); one for each"
            )
        if output not in (None, "luperson"):
            raise HapError(f"output={output}: luperson, or nothing")
        self.loss, self.codecs, self.flip_test, self.output = loss, list(codecs), flip_test, output
        self._skeleton = None if skeleton is None else get_skeleton(skeleton)
        self._of_file: dict[str, Any] = {}  # what is known of predictions that were read

    @property
    def best_of(self) -> str:  # type: ignore[override]
        truth = self.metric.records.truth
        if isinstance(truth, MpiiTruth):
            return "PCKh"
        return "AP" if truth.skeleton.sigmas is not None else "PCK_box@0.05"

    @property
    def skeleton(self) -> Skeleton:
        """What the channels are. Raises HapError where neither checkpoint nor configuration says."""
        if "joints" in self.labels:
            return of_labels(self.labels)
        if self._skeleton is None:
            raise HapError(
                "weights=FILE does not name the joints: give task.skeleton=coco (or mpii, aic, {joints: [...]}), or "
                "ckpt_path=FILE of a checkpoint of hap"
            )
        return self._skeleton

    @classmethod
    def labels_of(cls, records: PoseRecords) -> dict[str, list[str]]:  # type: ignore[override]
        """See `Skeleton.labels`."""
        return records.skeleton.labels()

    @classmethod
    def arranged(
        cls, splits: Mapping[str, PoseRecords], labels: Mapping[str, Sequence[str]]
    ) -> Mapping[str, PoseRecords]:
        """Joints by name, of the splits that are evaluated. What was one split stays one."""
        arranged = {id(r): r.arranged(labels["joints"]) for name, r in splits.items() if name != "train"}
        return {name: arranged.get(id(records), records) for name, records in splits.items()}

    def forward(self, batch: dict[str, torch.Tensor]) -> Any:
        """In training heat maps (N, K, h, w) of every head for every image; else those to decode."""
        images = self.normalize(batch["image"])
        return self.model(images, batch["source"]) if self.training else self.heatmaps(images)

    def heatmaps(self, images: torch.Tensor) -> torch.Tensor:
        """Of the first data set, (N, K, h, w) float32; the mean with those of the mirror images.

        Args:
            images: (N, 3, H, W), normalised.
        """
        (heatmaps,) = self.model(images, 0)
        if not self.flip_test:
            return heatmaps
        (mirrored,) = self.model(images.flip(3), 0)
        index = torch.from_numpy(self.skeleton.flip_index)
        return (heatmaps + self.codecs[0].flip_back(mirrored, index)) / 2

    def targets(self, joints: torch.Tensor, source: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Heat maps (N, K, h, w) and weights (N, K) for joints (N, K, 3), each person's by the codec of its source."""
        made = [codec.encode(joints) for codec in self.codecs]
        rows = torch.arange(len(source), device=source.device)
        target, weight = (torch.stack(parts)[source, rows] for parts in zip(*made, strict=True))
        return target, weight

    def losses(self, outputs: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if not self.training:
            return {}  # what is evaluated has no targets: boxes of a detector are nobody's
        source = batch["source"]
        target, weight = self.targets(batch["joints"], source)
        if len(outputs) == 1:
            return {"loss": self.loss(outputs[0], target, weight)}
        heads = {
            f"head_{i}": self.loss(heatmaps, target, weight * (source == i)[:, None])
            for i, heatmaps in enumerate(outputs)
        }
        return {"loss": torch.stack(list(heads.values())).sum(), **heads}

    def predictions(self, outputs: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`keypoints` (N, K, 3): x, y in pixels of the whole picture, the height of the peak."""
        points = self.codecs[0].decode(outputs)
        xy = self.codecs[0].to_image(points[..., :2], batch["center"], batch["scale"])
        return {"keypoints": torch.cat([xy, points[..., 2:]], dim=2)}

    def update_metrics(self, outputs: Any, batch: dict[str, torch.Tensor]) -> None:
        self.metric.update(self.predictions(outputs, batch)["keypoints"], batch["index"])

    def pictures(self, batch: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
        """Crops with the joints that are found in them, and above each the sum of its heat maps."""
        heatmaps = self(batch)
        size = batch["image"].shape[-2:]
        points = self.codecs[0].decode(heatmaps)
        points = torch.cat([self.codecs[0].to_input(points[..., :2]), points[..., 2:]], dim=2)
        columns = []
        for image, found, maps in zip(
            batch["image"].movedim(1, -1).cpu().numpy(),
            points.cpu().numpy(),
            heatmaps.sum(1).clamp(0, 1).cpu().numpy(),
            strict=True,
        ):
            glow = cv2.resize((255 * maps).astype(np.uint8), size[::-1])
            heat = cv2.addWeighted(image, 0.5, np.repeat(glow[..., None], 3, 2), 0.5, 0)
            columns.append([heat, draw_pose(image, found, self.skeleton)])
        return {"poses": mosaic(columns, ["heat maps", "joints"])}

    def write_predictions(self, rows: dict[str, torch.Tensor], records: Sequence[Any], folder: Path) -> None:
        """See `pose2d_outputs.write_poses`, and with `output=luperson` `write_luperson`."""
        keypoints = rows["keypoints"].numpy()
        given: Any = self.trainer.datamodule.records("predict")  # type: ignore[attr-defined]
        pictures = given.sources if isinstance(given, Boxes) else given
        write_poses(folder, records, keypoints, self.skeleton, pictures)
        if self.output == "luperson":
            write_luperson(folder, records, keypoints, self.skeleton)

    def read_predictions(self, path: Path, records: PoseRecords) -> None:  # type: ignore[override]
        self._start_metric()
        self.metric.records = records
        poses, self._of_file = read_results(path, records)
        self.metric.give(poses)

    def report(self, folder: Path, dataset: Dataset) -> dict[str, np.ndarray]:
        """The poses in the official form (`write_results`), `per_joint.csv`, and the people who were found best and
        worst, each beside its truth."""
        records: Any = dataset.records
        write_results(folder, records, self.metric.scored()[0])
        write_rows(folder / "per_joint.csv", self.metric.per_joint())
        pictures = {"best_people": self._people(dataset, True), "worst_people": self._people(dataset, False)}
        return {name: picture for name, picture in pictures.items() if picture is not None}

    def _people(self, dataset: Dataset, best: bool) -> np.ndarray | None:
        """None where no picture can be read: a file of predictions needs none."""
        records: Any = dataset.records
        poses, truth, tiles = self.metric.scored()[0], records.truth, []
        for pose, person, similarity in self.metric.ranked_people(NUM_PEOPLE, best):
            mpii = isinstance(truth, MpiiTruth)
            row = int(poses.index[pose])
            if row < 0:  # of a file: any record of the picture shows it
                row = next(iter(np.flatnonzero(records.image == truth.image[person]).tolist()), -1)
            if row < 0 or dataset.problem(row) is not None:
                continue
            labelled = truth.labelled[person] if mpii else truth.joints[person, :, 2] > 0
            joints = np.column_stack([truth.joints[person, :, :2] - mpii, labelled])
            box = records.box[row] if mpii else truth.box[person]
            image = dataset.read(row)[0]
            views = [
                close_up(image, keypoints, records.skeleton, box, TILE)
                for keypoints in (poses.keypoints[pose], joints)
            ]
            name = printable(Path(records.files[records.image[row]]).name)
            texts = (name, f"{'PCK' if mpii else 'OKS'} {similarity:.2f}"), ("truth",)
            tiles += [Tile(view, FRAME, text) for view, text in zip(views, texts, strict=True)]
        return tile_rows([tiles[i : i + 8] for i in range(0, len(tiles), 8)]) if tiles else None

    def on_train_start(self) -> None:
        super().on_train_start()
        transform = self.trainer.datamodule.transforms["train"]  # type: ignore[attr-defined]
        if self.flip_test or transform.flip_prob:
            self.skeleton.check_flip()

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self.metric.records = self.trainer.datamodule.records("val")  # type: ignore[attr-defined]

    def on_test_epoch_start(self) -> None:
        super().on_test_epoch_start()
        datamodule: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        self.metric.records = datamodule.records(datamodule.test_split)
        if self.flip_test:
            self.skeleton.check_flip()

    def on_predict_start(self) -> None:
        if self.flip_test:
            self.skeleton.check_flip()
        if self.output == "luperson":
            check_luperson(self.trainer.datamodule.records("predict"), self.skeleton)  # type: ignore[attr-defined]

    def protocol(self) -> dict[str, Any]:
        if self.metric.records is None:  # a training that is shorter than what lies between validations
            return {}
        said = self._of_file or {"codec": type(self.codecs[0]).__name__, "flip_test": self.flip_test}
        return {**said, **self.metric.protocol()}
