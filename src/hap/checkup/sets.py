"""The data sets of the project: what each is made of, how much of it there is, and where it is to be had."""

from hap.checkup.parts import DataSet, Part

WEIGHTS = "weights=hap_pretrained.pth"
RESEARCH = "for research that is not commercial"
_TREE = "https://github.com/hongsukchoi/3DCrowdNet_RELEASE"
_POSE3D = "hap train experiment=pose3d_hmr2 data.root={above} data.reader.sets=[%s] " + WEIGHTS
_TRAINING = "training: evaluation alone works"
_AIC = {
    "train": ("ai_challenger_keypoint_train_20170909", "ai_challenger_keypoint_train_20170902"),
    "validation": ("ai_challenger_keypoint_validation_20170911",),
}


def _aic_images(split: str, date: str, count: int, without: str) -> Part:
    name = f"keypoint_{split}_images_{date}"
    return Part((*(f"{folder}/{name}" for folder in _AIC[split]), name), count, without=without)


def _aic_annotation(split: str, date: str, short: str, without: str) -> Part:
    names = f"aic_{short}.json", f"keypoint_{split}_annotations_{date}.json"
    return Part(
        tuple(f"{place}{name}" for name in names for place in ("annotations/", f"{_AIC[split][0]}/", "")),
        without=without,
    )


def _text(name: str, title: str, experiment: str, parts: tuple[Part, ...], url: str, licence: str) -> DataSet:
    annotation = parts[0].paths
    return DataSet(
        name,
        title,
        (name, title),
        annotation,
        parts,
        url,
        licence,
        f"hap train experiment={experiment} data.root={{root}} {WEIGHTS}",
        listing=(annotation, "img_path" if name == "rstpreid" else "file_path"),
    )


DATA_SETS = (
    DataSet(
        "luperson",
        "LUPerson",
        ("luperson", "LUPerson"),
        ("LUPerson-data", "LUPerson-pose", "LUPerson-pose.npy", "cfs_list.pkl"),
        (
            Part(("LUPerson-data", "data.mdb", "*.tar", "manifest.json"), 4_180_243),
            Part(
                ("LUPerson-pose", "LUPerson-pose.npy", "data.mdb", "*.tar", "manifest.json"),
                4_180_243,
                suffixes=(".npy",),
                without="masks that follow the body",
                option="data.reader.require_pose=false",
            ),
            Part(
                ("cfs_list.pkl", "manifest.json"),
                without="better half, as in the paper",
                option="data.reader.cfs_ratio=1",
            ),
        ),
        "https://github.com/DengpanFu/LUPerson (poses and cfs_list.pkl: https://github.com/junkunyuan/HAP)",
        "a signed agreement with its authors",
        "hap train experiment=pretrain_hap data.root={root} weights=timm:vit_base_patch16_224.mae",
        (("manifest.json", "shards of hap pack: hap pack --verify FOLDER checks them"),),
    ),
    DataSet(
        "market1501",
        "Market-1501",
        ("market1501", "Market-1501-v15.09.15", "Market-1501", "Market1501"),
        ("bounding_box_train",),
        (
            Part(("bounding_box_train",), 12_936),
            Part(("query",), 3_368),
            Part(("bounding_box_test",), 19_732),
        ),
        "https://zheng-lab.cecs.anu.edu.au/Project/project_reid.html",
        "for research: see its page",
        f"hap train experiment=reid_market1501 data.root={{root}} {WEIGHTS}",
    ),
    DataSet(
        "msmt17",
        "MSMT17",
        ("msmt17", "MSMT17_V1", "MSMT17_V2", "MSMT17", "msmt"),
        ("list_train.txt", "list_query.txt", "list_gallery.txt", "mask_train_v2"),
        (
            Part(("list_train.txt", "bounding_box_train")),
            Part(
                ("list_val.txt", "bounding_box_train"),
                without="train + val, the published protocol",
                option="data.reader.train_lists=train",
            ),
            Part(("list_query.txt", "query"), 11_659),
            Part(("list_gallery.txt", "bounding_box_test")),
            Part(("mask_train_v2", "train", "bounding_box_train"), 32_621),
            Part(("mask_test_v2", "test", "bounding_box_test"), 93_820, (("bounding_box_test", 82_161),)),
        ),
        "https://www.pkuvmc.com/dataset.html",
        "a signed release agreement, " + RESEARCH,
        f"hap train experiment=reid_msmt17 data.root={{root}} {WEIGHTS}",
        (
            (
                "mask_train_v2",
                "V2: faces are blurred, which costs 1.5 to 2 points of mAP against published numbers",
            ),
            ("list_train.txt", "V1, of the published numbers"),
            ("bounding_box_train", "repacked like Market-1501: nothing says whether it is V1 or V2"),
        ),
    ),
    DataSet(
        "pa100k",
        "PA-100K",
        ("pa100k", "PA-100K", "PA100k"),
        ("annotation.mat", "annotation/annotation.mat", "release_data"),
        (
            Part(("annotation.mat", "annotation/annotation.mat", "dataset_all.pkl")),
            Part(("data/release_data/release_data", "release_data/release_data", "data"), 100_000),
        ),
        "https://github.com/xh-liu/HydraPlus-Net",
        "see its page",
        f"hap train experiment=attribute_pa100k data.root={{root}} {WEIGHTS}",
    ),
    DataSet(
        "rap",
        "RAP",
        ("rap", "RAP"),
        ("RAP_annotation", "RAP_annotation.mat", "RAP_dataset"),
        (
            Part(("RAP_annotation/RAP_annotation.mat", "RAP_annotation.mat", "dataset_all.pkl")),
            Part(("RAP_dataset",), 41_585),
        ),
        "https://www.rapdataset.com",
        "a signed agreement, " + RESEARCH,
        f"hap train experiment=attribute_rap data.root={{root}} {WEIGHTS}",
    ),
    DataSet(
        "peta",
        "PETA",
        ("peta", "PETA"),
        ("PETA.mat",),
        (Part(("PETA.mat", "dataset_all.pkl")), Part(("images",), 19_000)),
        "http://mmlab.ie.cuhk.edu.hk/projects/PETA.html (PETA.mat and 19,000 renumbered images: "
        "https://github.com/dangweili/pedestrian-attribute-recognition-pytorch)",
        "see its page",
        f"hap train experiment=attribute_peta data.root={{root}} {WEIGHTS}",
    ),
    DataSet(
        "coco",
        "COCO 2017",
        ("coco", "COCO", "coco2017", "MSCOCO"),
        (
            "annotations/person_keypoints_val2017.json",
            "annotations/person_keypoints_train2017.json",
            "val2017",
        ),
        (
            Part(
                ("annotations/person_keypoints_val2017.json",),
                mistaken=(("annotations/instances_val2017.json", "has boxes and no joints"),),
            ),
            Part(("val2017",), 5_000),
            Part(
                ("person_detection_results/COCO_val2017_detections_AP_H_56_person.json",),
                without="detected boxes, those of published numbers",
                option="data.reader.boxes=truth",
            ),
            Part(("annotations/person_keypoints_train2017.json",), without=_TRAINING),
            Part(("train2017",), 118_287, without=_TRAINING),
        ),
        "https://cocodataset.org",
        "annotations CC BY 4.0; each picture has its own of Flickr's",
        f"hap train experiment=pose2d_coco data.root={{root}} {WEIGHTS}",
    ),
    DataSet(
        "mpii",
        "MPII",
        ("mpii", "MPII"),
        ("annotations/mpii_val.json", "annotations/mpii_train.json", "annotations/mpii_gt_val.mat"),
        (
            Part(
                ("annotations/mpii_val.json",),
                mistaken=(
                    (
                        "mpii_human_pose_v1_u12_1.mat",
                        "is the original annotation, which has no list of validation people",
                    ),
                ),
            ),
            Part(
                ("annotations/mpii_gt_val.mat",),
                mistaken=(("annotations/gt_valid.mat", "has the same under its other name: rename it"),),
            ),
            Part(("images",), 0),
            Part(("annotations/mpii_train.json",), without=_TRAINING),
        ),
        "https://www.mpi-inf.mpg.de/departments/computer-vision-and-machine-learning/software-and-datasets/"
        "mpii-human-pose-dataset",
        "annotations Simplified BSD, pictures for research",
        f"hap train experiment=pose2d_mpii data.root={{root}} {WEIGHTS}",
    ),
    DataSet(
        "aic",
        "AI Challenger",
        ("aic", "AIC", "ai_challenger"),
        ("annotations/aic_val.json", "annotations/aic_train.json", *_AIC["train"], *_AIC["validation"]),
        (
            _aic_annotation("validation", "20170911", "val", ""),
            _aic_images("validation", "20170911", 30_000, ""),
            _aic_annotation("train", "20170909", "train", _TRAINING),
            _aic_images("train", "20170902", 210_000, _TRAINING),
        ),
        "https://github.com/AIChallenger/AI_Challenger_2017",
        "for research: see its page",
        f"hap train experiment=pose2d_aic data.root={{root}} {WEIGHTS}",
    ),
    DataSet(
        "pw3d",
        "3DPW",
        ("pose3d/PW3D", "3DPW", "PW3D", "3dpw"),
        ("sequenceFiles", "3DPW_latest_test.json"),
        (
            Part(("sequenceFiles/test", "3DPW_latest_test.json"), 24, suffixes=(".pkl",)),
            Part(("imageFiles",), 0),
        ),
        "https://virtualhumans.mpi-inf.mpg.de/3DPW",
        RESEARCH,
        "hap eval ckpt_path=FILE data.root={root} data.reader.pw3d=. data.reader.sets=[]",
        (
            ("sequenceFiles", "as released"),
            ("3DPW_latest_test.json", "as 3DCrowdNet has prepared it: the same people"),
        ),
    ),
    DataSet(
        "h36m",
        "Human3.6M",
        ("pose3d/Human36M", "Human36M"),
        tuple(f"annotations/Human36M_subject{subject}_data.json" for subject in (1, 5, 6, 7, 8)),
        (
            *(
                Part((f"annotations/Human36M_subject{subject}_{kind}.json",))
                for subject in (1, 5, 6, 7, 8)
                for kind in ("data", "camera", "joint_3d", "smpl_param")
            ),
            Part(("images",), 0),
        ),
        f"http://vision.imar.ro/human3.6m (prepared: {_TREE})",
        "a registration, " + RESEARCH,
        _POSE3D % "h36m",
    ),
    DataSet(
        "muco",
        "MuCo-3DHP",
        ("pose3d/MuCo", "MuCo"),
        ("MuCo-3DHP.json", "data/MuCo-3DHP.json"),
        (
            Part(("data/MuCo-3DHP.json", "MuCo-3DHP.json")),
            Part(("data/smpl_param.json", "smpl_param.json")),
            Part(("data/augmented_set", "augmented_set"), 0),
            Part(("data/unaugmented_set", "unaugmented_set"), 0),
        ),
        f"https://vcai.mpi-inf.mpg.de/3dhp-dataset (prepared: {_TREE})",
        RESEARCH,
        _POSE3D % "muco",
    ),
    DataSet(
        "coco3d",
        "COCO with bodies",
        ("pose3d/MSCOCO",),
        ("annotations/MSCOCO_train_SMPL_NeuralAnnot.json",),
        (
            Part(("annotations/MSCOCO_train_SMPL_NeuralAnnot.json",)),
            Part(("annotations/person_keypoints_train2017.json",)),
            Part(("images/train2017",), 118_287),
        ),
        f"https://cocodataset.org (fits: {_TREE})",
        "annotations CC BY 4.0; of the fits none is stated",
        _POSE3D % "coco",
    ),
    DataSet(
        "mpii3d",
        "MPII with bodies",
        ("pose3d/MPII",),
        ("data/annotations/MPII_train_SMPL_NeuralAnnot.json", "data/annotations/train.json"),
        (
            Part(("data/annotations/MPII_train_SMPL_NeuralAnnot.json",)),
            Part(("data/annotations/train.json",)),
            Part(("data/images",), 0),
        ),
        f"MPII's page (prepared: {_TREE})",
        "pictures for research; of the fits none is stated",
        _POSE3D % "mpii",
    ),
    DataSet(
        "bedlam",
        "BEDLAM",
        ("bedlam", "BEDLAM"),
        ("training_labels", "training_images"),
        (Part(("training_labels",), 0, suffixes=(".npz",)), Part(("training_images",), 0)),
        "https://bedlam.is.tue.mpg.de",
        "a registration, " + RESEARCH,
        "hap train experiment=pose3d_hmr2 data.root={root} data.reader.sets=[bedlam] " + WEIGHTS,
    ),
    DataSet(
        "smpl",
        "SMPL",
        ("smpl", "SMPL", "body_models/smpl"),
        ("basicModel_*", "SMPL_*", "J_regressor_extra.npy", "J_regressor_h36m_correct.npy"),
        (
            Part(
                (
                    *("basicModel_neutral_lbs_10_207_0_v*.pkl", "basicModel_neutral_lbs_10_207_0_v*.npz"),
                    *("SMPL_NEUTRAL*.pkl", "SMPL_NEUTRAL*.npz"),
                ),
                mistaken=(
                    ("SMPLX_*", "is of SMPL-X, another body"),
                    ("SMPLH_*", "is of SMPL-H, another body"),
                ),
            ),
            Part(
                ("J_regressor_extra.npy",),
                mistaken=(("J_regressor_extra*", "is another file, or another name"),),
            ),
            Part(
                ("J_regressor_h36m_correct.npy",),
                without="scores, also while training: published with Pose2Mesh and 3DCrowdNet",
                option="trainer.limit_val_batches=0",
            ),
            *(
                Part(
                    (
                        *(
                            f"basicModel_{letter}_lbs_10_207_0_v*.pkl",
                            f"basicModel_{letter}_lbs_10_207_0_v*.npz",
                        ),
                        *(f"SMPL_{gender}*.pkl", f"SMPL_{gender}*.npz"),
                    ),
                    without="true bodies of 3DPW, which are of men and women",
                    option="data.reader.gt_body=neutral",
                )
                for letter, gender in (("m", "MALE"), ("f", "FEMALE"))
            ),
        ),
        "https://smplify.is.tue.mpg.de (neutral), https://smpl.is.tue.mpg.de (men, women); J_regressor_extra.npy: "
        "https://github.com/nkolot/SPIN, J_regressor_h36m_correct.npy: "
        "https://github.com/hongsukchoi/Pose2Mesh_RELEASE; without any of them: body=drawn",
        f"a registration, {RESEARCH}, not to be passed on",
        f"hap train experiment=pose3d_hmr2 body.folder={{root}} {WEIGHTS}",
    ),
    _text(
        "cuhk_pedes",
        "CUHK-PEDES",
        "text_reid_cuhk",
        (
            Part(
                ("reid_raw.json",),
                mistaken=(
                    (
                        "caption_all.json",
                        "has no splits: reid_raw.json is a download of its own, from the same authors",
                    ),
                ),
            ),
            Part(("imgs",), 40_206),
        ),
        "https://github.com/ShuangLI59/Person-Search-with-Natural-Language-Description",
        "on request to its authors, " + RESEARCH,
    ),
    _text(
        "icfg_pedes",
        "ICFG-PEDES",
        "text_reid_icfg",
        (Part(("ICFG-PEDES.json", "ICFG_PEDES.json")), Part(("imgs", "train"), 54_522)),
        "https://github.com/zifyloo/SSAN (its images are of MSMT17)",
        "on request to its authors, " + RESEARCH,
    ),
    _text(
        "rstpreid",
        "RSTPReid",
        "text_reid_rstp",
        (Part(("data_captions.json",)), Part(("imgs",), 20_505)),
        "https://github.com/NjtechCVLab/RSTPReid-Dataset (its images are of MSMT17)",
        "see its page",
    ),
)
