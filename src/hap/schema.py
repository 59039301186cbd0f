"""The root keys of the programs, typed and explained."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class ViTConfig:
    """Size of the backbone; conf/model/*.yaml."""

    patch_size: int = MISSING
    embed_dim: int = MISSING
    depth: int = MISSING
    num_heads: int = MISSING


@dataclass
class MaskingConfig:
    """Share of the patches that is removed, and how they are chosen; conf/masking/*.yaml."""

    ratio: float = MISSING
    strategy: Any = MISSING


@dataclass
class Root:
    """The root keys, the same for every experiment and program. Whatever is not here is a group of its own
    with `_target_`s: there, the constructors are the schema."""

    name: str = MISSING  # of the experiment; names the run folder and the W&B project's runs
    run_dir: str = MISSING
    seed: int = 0
    img_size: list[int] = field(default_factory=lambda: [256, 128])  # height, width
    epochs: int = MISSING
    total_batch_size: int = MISSING  # images per optimiser step, over all devices
    micro_batch_size: int | None = (
        None  # images per device and pass; null: total / devices, in pre-training what fits
    )
    synthetic: bool = False  # drawn people in place of the data set
    # initialise the model: a file, or timm:NAME, hf:OWNER/REPO, https://..., drawn; experiment=probe: or a list of them
    weights: Any = None
    weights_source: str = "auto"  # hap, mae, timm, lightning, attributes, vitpose, crowdnet, text_reid
    weights_entry: str | None = None  # the file's entry to take, such as teacher
    weights_prefix: str = ""  # what the encoder's names in it begin with, such as "backbone."
    weights_grid: Any = None  # rows x columns of the file's positions, such as 24x8
    weights_sha256: str | None = None  # refuse a file with another checksum
    weights_partial: bool = False  # take what fits of an encoder of another kind
    zero_shot: bool = (
        False  # eval, predict: score an encoder from `weights` that was not trained for the task
    )
    predictions: str | None = None  # eval: score this table of predictions instead of a model
    ckpt_path: str | None = None  # train: resume from it; eval, predict: load it whole
    resume: str | None = None  # "auto": go on in run_dir; train: from its newest intact checkpoint
    compile: bool = False
    objective: str | None = (
        None  # the result that a sweep is about, such as val/loss; null: the best known one
    )
    dry_run: bool = False  # train: say what would run and what it costs, and stop
    input: str | None = None  # predict: a folder, image, video, pattern ('crops/*.jpg') or list (.txt, .csv)
    query: str | None = None  # predict, for retrieval: the same, of what to look for ...
    gallery: str | None = None  # ... and of what to look in
    video_stride: int = 1  # predict: every so manieth frame of videos
    webcam_seconds: float = 10  # predict, input=webcam:0: how long it is recorded
    # predict: the people in full pictures, a file (CSV image,x,y,w,h[,score], COCO's detections), or `detector`
    boxes: str | None = None
    detector: str = "resnet50"  # with boxes=detector, or mobilenet
    detector_weights: str | None = None  # its file; null: in torch's cache
    detector_score: float = 0.5  # from which a box is somebody
    output: str | None = None  # predict, 2D pose: luperson writes pose files to pre-train with, too
    keypoints: str | None = (
        None  # predict, 3D pose: people with their 2D joints, poses.json of a model of 2D pose
    )
    focal: float | None = (
        None  # predict, 3D pose: focal length of the pictures in pixels; null: depths are not metric
    )
    axes: str = "camera"  # predict, 3D pose: of the meshes; or y_up
    text_encoder: str = "auto"  # text ReID: a folder of BERT, minilm, words; auto: minilm if it is installed
    text: str | None = None  # predict, text ReID: what to look for: a sentence, or a file of one on each line
    data: Any = MISSING
    task: Any = MISSING
    model: ViTConfig = field(default_factory=ViTConfig)
    masking: MaskingConfig = field(default_factory=MaskingConfig)  # of pre-training
    body: Any = None  # of 3D pose: smpl, or drawn
    trainer: Any = MISSING
    logger: Any = None
    callbacks: Any = None


@dataclass
class PackData:
    root: str | None = None  # LUPerson's folder, a tar file, or an LMDB


@dataclass
class PackRoot:
    """The root keys of `hap pack`."""

    data: PackData = field(default_factory=PackData)
    out: str = MISSING
    height: int | None = None  # shrink taller images to this height and record it; null: the original bytes
    shard_mb: float = 256
    cfs_ratio: float = 1.0  # share of the CFS list to pack, best first
    require_pose: bool = True  # leave out images without a pose
    num_workers: int | None = None  # null: one process per core
    verify: bool = False  # compare every shard in `out` with its checksum


@dataclass
class SynthesizeRoot:
    """The root keys of `hap synthesize`."""

    dataset: str = MISSING
    num_images: int = 2000
    out: str = MISSING
    seed: int = 0
    num_workers: int | None = None  # null: one process per core
    options: dict[str, Any] = field(default_factory=dict)  # of the data set's writer


@dataclass
class ExportRoot:
    """The root keys of `hap export`."""

    ckpt_path: str | None = None  # a checkpoint of hap
    weights: str | None = (
        None  # or an encoder of `model`: a file, or timm:NAME, hf:OWNER/REPO, https://..., drawn
    )
    weights_source: str = "auto"  # these as in training
    weights_entry: str | None = None
    weights_prefix: str = ""
    weights_grid: Any = None
    weights_sha256: str | None = None
    weights_partial: bool = False
    model: ViTConfig = field(default_factory=ViTConfig)
    format: str = MISSING  # timm, safetensors, hap, onnx, torch_export
    size: str | None = None  # of images, height x width, such as 256x128; null: that of the training
    encoder: bool = False  # onnx, torch_export: of a model with a task, the encoder alone
    half: bool = False  # onnx: in 16 bits
    input: str | None = None  # photographs to compare on: a folder, pattern or list; null: drawn people
    out: str = MISSING  # a folder, which is made
