"""The tables of the paper as data: the printed numbers, and the network or model that each row stands for.

Source: chapter 2 of Zhuang Liu's dissertation (2022), the later text of Liu et al., "A ConvNet for the 2020s"; table
numbers are the dissertation's. V2: the table of weights, and Tables 6 and 7, of Woo et al., "ConvNeXt V2" (CVPR 2023,
arXiv 2301.00808). Numbers are as printed; accuracies, throughputs and memory are quoted from the papers, not measured
here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from backbones.roadmap import RESNET50_TO_TINY, RESNET200_TO_BASE, RoadmapRow
from detection.task import DETECTOR_SHAPE
from engine.task import Shape
from segmentation.task import SEGMENTOR_SHAPE

WIDE_SEGMENTOR_SHAPE = (640, 2560)
MASK_RCNN = "configs/detection/mask_rcnn_convnext_tiny_coco_3x.py"
CASCADE = "configs/detection/cascade_mask_rcnn_convnext_tiny_coco_3x.py"
UPERNET = "configs/segmentation/upernet_convnext_tiny_ade20k_160k.py"


@dataclass(frozen=True)
class PaperRow:
    """One row of a table.

    Attributes:
        label: Name of the network as printed.
        network: Registered name; ``None`` for a network that is only quoted.
        shape: Height and width of the image in pixels.
        config: Path of the config of the detector or segmentor; ``None`` for a classifier.
        params: Printed parameters in millions; ``None`` where the table has none.
        flops: Printed multiply-adds in billions; ``None`` where the table has none.
        quoted: Values of the paper's other columns.
        group: Heading above the row.
    """

    label: str
    network: str | None
    shape: Shape
    params: str | None
    flops: str | None
    quoted: tuple[str, ...] = ()
    config: str | None = None
    group: str = ""


@dataclass(frozen=True)
class ExplainedCount:
    """Our number where it differs from the printed one, and the reason; the number is checked like a printed one.

    Attributes:
        ours: Our number, in the unit of the printed one.
        reason: Reason for the difference.
    """

    ours: str
    reason: str


@dataclass(frozen=True)
class PaperTable:
    """One table.

    Attributes:
        number: Number in the dissertation, or a name that begins with ``v2``.
        title: Title of the table.
        quoted: Headings of the paper's other columns.
        rows: The rows in the printed order.
        explained: Explained deviations by ``(label, height of the image, "params" or "flops")``.
        notes: Notes below the table.
        products_only: True if the table counts convolutions and linear layers alone, to two decimals.
        architectures: True if the table shows the layers of the stages.
    """

    number: str
    title: str
    quoted: tuple[str, ...]
    rows: tuple[PaperRow, ...]
    explained: dict[tuple[str, int, str], ExplainedCount] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    products_only: bool = False
    architectures: bool = False


def _image(label: str, network: str | None, side: int, params: str | None, flops: str, *quoted: str) -> PaperRow:
    return PaperRow(label, network, (side, side), params, flops, quoted)


def _coco(label: str, network: str, flops: str, *quoted: str) -> PaperRow:
    return PaperRow(label, network, DETECTOR_SHAPE, None, flops, quoted, CASCADE)


def _ade(label: str, network: str, side: int, miou: str, params: str | None, flops: str | None) -> PaperRow:
    shape = SEGMENTOR_SHAPE if side == 512 else WIDE_SEGMENTOR_SHAPE
    return PaperRow(label, network, shape, params, flops, (f"{side}²", miou), UPERNET)


def _robust(label: str, network: str | None, side: int, params: str, flops: str, quoted: str) -> PaperRow:
    return _image(label, network, side, params, flops, *quoted.split())


def _released(label: str, network: str, side: int, params: str, flops: str, top1: str, run: str) -> PaperRow:
    """A row of V2, whose last column is the training that stands for the number."""
    return _image(label, network, side, params, flops, top1, f"classification/{network}_{run}")


def _v2_coco(label: str, method: str, network: str, flops: str, results: str, run: str = "-") -> PaperRow:
    """A row of V2's Table 6, whose last column is the training that stands for the numbers, if there is one."""
    return PaperRow(label, network, DETECTOR_SHAPE, None, flops, (method, *results.split(), run), MASK_RCNN)


def _v2_ade(
    label: str, method: str, network: str, side: int, miou: str, params: str, flops: str, run: str = "-"
) -> PaperRow:
    """A row of V2's Table 7, whose last column is the training that stands for the number, if there is one."""
    row = _ade(label, network, side, miou, params, flops)
    return replace(row, quoted=(method, *row.quoted, run))


def _under(group: str, *rows: PaperRow) -> tuple[PaperRow, ...]:
    return tuple(replace(row, group=group) for row in rows)


def _roadmap(
    number: str, first: PaperRow, steps: Mapping[str, RoadmapRow], last: PaperRow, counted: dict[str, str]
) -> PaperTable:
    """Table 2.10 or 2.11 from the list of networks; ``counted`` has our number for each row with a note."""
    rows, explained = [first], {}
    for name, step in steps.items():
        printed = step.printed
        accuracy = f"{printed.accuracy:.2f}" + (f" ± {printed.std:.2f}" if printed.std is not None else "")
        rows.append(_image(step.label, name, 224, None, f"{printed.gflops:.2f}", accuracy))
        if printed.note:
            explained[step.label, 224, "flops"] = ExplainedCount(counted[step.label], printed.note)
    title = f"From {first.label.split(' ')[0]} to ConvNeXt on ImageNet-1K"
    note = "FLOPs of convolutions and linear layers alone, as this table prints them; fvcore's rules count norms too."
    return PaperTable(number, title, ("top-1",), (*rows, last), explained, (note,), products_only=True)


_EFFNET_B7 = (
    "37.0 is quoted from EfficientNet's own paper; torchvision's independent network has the same 37.74 G of "
    "convolutions (its own list says 37.746), and 0.58 G are norms"
)
_EFFNETV2_L = (
    "120 M and 53 G are quoted from EfficientNetV2's own paper; the released network has 118,515,272 parameters and, "
    "in its convolutions, 56.08 G here and in torchvision's own list alike"
)
_EFFNETV2_XL = "94.0 G belong to 512 x 512, where the network has 93.85 G here, not to the printed 480 x 480"

ON_IMAGENET = PaperTable(
    "2.1",
    "Classification on ImageNet-1K",
    ("V100 image/s", "top-1"),
    _under(
        "ImageNet-1K trained models",
        _image("RegNetY-16G", "regnety_16g", 224, "84", "16.0", "334.7", "82.9"),
        _image("EffNet-B7", "efficientnet_b7", 600, "66", "37.0", "55.1", "84.3"),
        _image("EffNetV2-L", "efficientnetv2_l", 480, "120", "53.0", "83.7", "85.7"),
        _image("DeiT-S", "deit_small", 224, "22", "4.6", "978.5", "79.8"),
        _image("DeiT-B", "deit_base", 224, "87", "17.6", "302.1", "81.8"),
        _image("Swin-T", "swin_tiny", 224, "28", "4.5", "757.9", "81.3"),
        _image("ConvNeXt-T", "convnext_tiny", 224, "29", "4.5", "774.7", "82.1"),
        _image("Swin-S", "swin_small", 224, "50", "8.7", "436.7", "83.0"),
        _image("ConvNeXt-S", "convnext_small", 224, "50", "8.7", "447.1", "83.1"),
        _image("Swin-B", "swin_base", 224, "88", "15.4", "286.6", "83.5"),
        _image("ConvNeXt-B", "convnext_base", 224, "89", "15.4", "292.1", "83.8"),
        _image("Swin-B", "swin_base_384", 384, "88", "47.1", "85.1", "84.5"),
        _image("ConvNeXt-B", "convnext_base", 384, "89", "45.0", "95.7", "85.1"),
        _image("ConvNeXt-L", "convnext_large", 224, "198", "34.4", "146.8", "84.3"),
        _image("ConvNeXt-L", "convnext_large", 384, "198", "101.0", "50.4", "85.5"),
    )
    + _under(
        "ImageNet-22K pre-trained models",
        _image("R-101x3", "bit_r101x3", 384, "388", "204.6", "-", "84.4"),
        _image("R-152x4", "bit_r152x4", 480, "937", "840.5", "-", "85.4"),
        _image("EffNetV2-L", "efficientnetv2_l", 480, "120", "53.0", "83.7", "86.8"),
        _image("EffNetV2-XL", "efficientnetv2_xl", 480, "208", "94.0", "56.5", "87.3"),
        _image("ViT-B/16", "vit_base_384", 384, "87", "55.5", "93.1", "85.4"),
        _image("ViT-L/16", "vit_large_384", 384, "305", "191.1", "28.5", "86.8"),
        _image("ConvNeXt-T", "convnext_tiny", 224, "29", "4.5", "774.7", "82.9"),
        _image("ConvNeXt-T", "convnext_tiny", 384, "29", "13.1", "282.8", "84.1"),
        _image("ConvNeXt-S", "convnext_small", 224, "50", "8.7", "447.1", "84.6"),
        _image("ConvNeXt-S", "convnext_small", 384, "50", "25.5", "163.5", "85.8"),
        _image("Swin-B", "swin_base", 224, "88", "15.4", "286.6", "85.2"),
        _image("ConvNeXt-B", "convnext_base", 224, "89", "15.4", "292.1", "85.8"),
        _image("Swin-B", "swin_base_384", 384, "88", "47.0", "85.1", "86.4"),
        _image("ConvNeXt-B", "convnext_base", 384, "89", "45.1", "95.7", "86.8"),
        _image("Swin-L", "swin_large", 224, "197", "34.5", "145.0", "86.3"),
        _image("ConvNeXt-L", "convnext_large", 224, "198", "34.4", "146.8", "86.6"),
        _image("Swin-L", "swin_large_384", 384, "197", "103.9", "46.0", "87.3"),
        _image("ConvNeXt-L", "convnext_large", 384, "198", "101.0", "50.4", "87.5"),
        _image("ConvNeXt-XL", "convnext_xlarge", 224, "350", "60.9", "89.3", "87.0"),
        _image("ConvNeXt-XL", "convnext_xlarge", 384, "350", "179.0", "30.2", "87.8"),
    ),
    {
        ("EffNet-B7", 600, "flops"): ExplainedCount("38.33", _EFFNET_B7),
        ("EffNetV2-L", 480, "params"): ExplainedCount("118.52", _EFFNETV2_L),
        ("EffNetV2-L", 480, "flops"): ExplainedCount("56.40", _EFFNETV2_L),
        ("EffNetV2-XL", 480, "flops"): ExplainedCount("82.49", _EFFNETV2_XL),
    },
)

ISOTROPIC_AND_VIT = PaperTable(
    "2.2",
    "Isotropic ConvNeXt and ViT on ImageNet-1K",
    ("V100 image/s", "training GB", "top-1"),
    (
        _image("ViT-S", "vit_small", 224, "22", "4.6", "978.5", "4.9", "79.8"),
        _image("ConvNeXt-S (iso.)", "convnext_isotropic_small", 224, "22", "4.3", "1038.7", "4.2", "79.7"),
        _image("ViT-B", "vit_base", 224, "87", "17.6", "302.1", "9.1", "81.8"),
        _image("ConvNeXt-B (iso.)", "convnext_isotropic_base", 224, "87", "16.9", "320.1", "7.7", "82.0"),
        _image("ViT-L", "vit_large", 224, "304", "61.6", "93.1", "22.5", "82.6"),
        _image("ConvNeXt-L (iso.)", "convnext_isotropic_large", 224, "306", "59.7", "94.4", "20.4", "82.6"),
    ),
)

ON_COCO = PaperTable(
    "2.3",
    "Detection and instance segmentation on COCO, 3x schedule (‡: pre-trained on ImageNet-22K)",
    ("A100 FPS", "box AP", "AP50", "AP75", "mask AP", "AP50", "AP75"),
    tuple(
        replace(row, config=MASK_RCNN)
        for row in _under(
            "Mask R-CNN",
            _coco("Swin-T", "swin_tiny", "267", "23.1", "46.0", "68.1", "50.3", "41.6", "65.1", "44.9"),
            _coco("ConvNeXt-T", "convnext_tiny", "262", "25.6", "46.2", "67.9", "50.8", "41.7", "65.0", "44.9"),
        )
    )
    + _under(
        "Cascade Mask R-CNN",
        _coco("ResNet-50", "resnet50", "739", "16.2", "46.3", "64.3", "50.5", "40.1", "61.7", "43.4"),
        _coco("X101-32", "resnext101_32x4d", "819", "13.8", "48.1", "66.5", "52.4", "41.6", "63.9", "45.2"),
        _coco("X101-64", "resnext101_64x4d", "972", "12.6", "48.3", "66.4", "52.3", "41.7", "64.0", "45.1"),
        _coco("Swin-T", "swin_tiny", "745", "12.2", "50.4", "69.2", "54.7", "43.7", "66.6", "47.3"),
        _coco("ConvNeXt-T", "convnext_tiny", "741", "13.5", "50.4", "69.1", "54.8", "43.7", "66.5", "47.3"),
        _coco("Swin-S", "swin_small", "838", "11.4", "51.9", "70.7", "56.3", "45.0", "68.2", "48.8"),
        _coco("ConvNeXt-S", "convnext_small", "827", "12.0", "51.9", "70.8", "56.5", "45.0", "68.4", "49.1"),
        _coco("Swin-B", "swin_base", "982", "10.7", "51.9", "70.5", "56.4", "45.0", "68.1", "48.9"),
        _coco("ConvNeXt-B", "convnext_base", "964", "11.4", "52.7", "71.3", "57.2", "45.6", "68.9", "49.5"),
        _coco("Swin-B‡", "swin_base", "982", "10.7", "53.0", "71.8", "57.5", "45.8", "69.4", "49.7"),
        _coco("ConvNeXt-B‡", "convnext_base", "964", "11.5", "54.0", "73.1", "58.8", "46.9", "70.6", "51.3"),
        _coco("Swin-L‡", "swin_large", "1382", "9.2", "53.9", "72.4", "58.8", "46.7", "70.1", "50.8"),
        _coco("ConvNeXt-L‡", "convnext_large", "1354", "10.0", "54.8", "73.8", "59.8", "47.6", "71.3", "51.7"),
        _coco("ConvNeXt-XL‡", "convnext_xlarge", "1898", "8.6", "55.2", "74.2", "59.9", "47.7", "71.6", "52.2"),
    ),
)

ON_ADE20K = PaperTable(
    "2.4",
    "UperNet on ADE20K, multi-scale testing (‡: pre-trained on ImageNet-22K)",
    ("crop", "mIoU"),
    _under(
        "ImageNet-1K pre-trained",
        _ade("Swin-T", "swin_tiny", 512, "45.8", "60", "945"),
        _ade("ConvNeXt-T", "convnext_tiny", 512, "46.7", "60", "939"),
        _ade("Swin-S", "swin_small", 512, "49.5", "81", "1038"),
        _ade("ConvNeXt-S", "convnext_small", 512, "49.6", "82", "1027"),
        _ade("Swin-B", "swin_base", 512, "49.7", "121", "1188"),
        _ade("ConvNeXt-B", "convnext_base", 512, "49.9", "122", "1170"),
    )
    + _under(
        "ImageNet-22K pre-trained",
        _ade("Swin-B‡", "swin_base", 640, "51.7", "121", "1841"),
        _ade("ConvNeXt-B‡", "convnext_base", 640, "53.1", "122", "1828"),
        _ade("Swin-L‡", "swin_large", 640, "53.5", "234", "2468"),
        _ade("ConvNeXt-L‡", "convnext_large", 640, "53.7", "235", "2458"),
        _ade("ConvNeXt-XL‡", "convnext_xlarge", 640, "54.0", "391", "3335"),
    ),
)

ON_ADE20K_SINGLE_SCALE = PaperTable(
    "2.7",
    "UperNet on ADE20K, single-scale testing (the networks and counts of Table 2.4)",
    ("crop", "mIoU"),
    _under(
        "ImageNet-1K pre-trained",
        _ade("ConvNeXt-T", "convnext_tiny", 512, "46.0", None, None),
        _ade("ConvNeXt-S", "convnext_small", 512, "48.7", None, None),
        _ade("ConvNeXt-B", "convnext_base", 512, "49.1", None, None),
    )
    + _under(
        "ImageNet-22K pre-trained",
        _ade("ConvNeXt-B‡", "convnext_base", 640, "52.6", None, None),
        _ade("ConvNeXt-L‡", "convnext_large", 640, "53.2", None, None),
        _ade("ConvNeXt-XL‡", "convnext_xlarge", 640, "53.6", None, None),
    ),
)

ROBUSTNESS = PaperTable(
    "2.8",
    "Robustness (C, C-bar: corruption error, lower is better; RVT is not a network of this project)",
    ("trained on", "clean", "C", "C-bar", "A", "R", "Sketch"),
    (
        _robust("ResNet-50", "resnet50", 224, "25.6", "4.1", "1K 76.1 76.7 57.7 0.0 36.1 24.1"),
        _robust("Swin-T", "swin_tiny", 224, "28.3", "4.5", "1K 81.2 62.0 - 21.6 41.3 29.1"),
        _robust("RVT-S*", None, 224, "23.3", "4.7", "1K 81.9 49.4 37.5 25.7 47.7 34.7"),
        _robust("ConvNeXt-T", "convnext_tiny", 224, "28.6", "4.5", "1K 82.1 53.2 40.0 24.2 47.2 33.8"),
        _robust("Swin-B", "swin_base", 224, "87.8", "15.4", "1K 83.4 54.4 - 35.8 46.6 32.4"),
        _robust("RVT-B*", None, 224, "91.8", "17.7", "1K 82.6 46.8 30.8 28.5 48.7 36.0"),
        _robust("ConvNeXt-B", "convnext_base", 224, "88.6", "15.4", "1K 83.8 46.8 34.4 36.7 51.3 38.2"),
        _robust("ConvNeXt-B", "convnext_base", 384, "88.6", "45.1", "22K 86.8 43.1 30.7 62.3 64.9 51.6"),
        _robust("ConvNeXt-L", "convnext_large", 384, "197.8", "101.0", "22K 87.5 40.2 29.9 65.5 66.7 52.8"),
        _robust("ConvNeXt-XL", "convnext_xlarge", 384, "350.2", "179.0", "22K 87.8 38.8 27.1 69.3 68.2 55.0"),
    ),
)

SPECIFICATIONS = PaperTable(
    "2.9",
    "Architectures of ResNet-50, ConvNeXt-T and Swin-T",
    (),
    (
        _image("ResNet-50", "resnet50", 224, "25.6", "4.1"),
        _image("ConvNeXt-T", "convnext_tiny", 224, "28.6", "4.5"),
        _image("Swin-T", "swin_tiny", 224, "28.3", "4.5"),
    ),
    architectures=True,
)

FROM_RESNET50 = _roadmap(
    "2.10",
    _image("ResNet-50 (PyTorch)", "roadmap50_resnet", 224, None, "4.09", "76.13"),
    RESNET50_TO_TINY,
    _image("Swin-T", "swin_tiny", 224, None, "4.50", "81.30"),
    {"inverting dimensions": "4.64", "BN → LN": "4.15", "separate d.s. conv (ConvNeXt-T)": "4.46"},
)

FROM_RESNET200 = _roadmap(
    "2.11",
    _image("ResNet-200", "roadmap200_resnet", 224, None, "15.01", "78.20"),
    RESNET200_TO_BASE,
    _image("Swin-B", "swin_base", 224, None, "15.43", "83.50"),
    {},
)

ON_A100 = PaperTable(
    "2.12",
    "Inference throughput on an A100 with TF32 and channels_last, as the paper measured it",
    ("A100 image/s", "top-1 1K / 22K"),
    (
        _image("Swin-T", "swin_tiny", 224, None, "4.5", "1325.6", "81.3 / -"),
        _image("ConvNeXt-T", "convnext_tiny", 224, None, "4.5", "1943.5 (+47%)", "82.1 / -"),
        _image("Swin-S", "swin_small", 224, None, "8.7", "857.3", "83.0 / -"),
        _image("ConvNeXt-S", "convnext_small", 224, None, "8.7", "1275.3 (+49%)", "83.1 / -"),
        _image("Swin-B", "swin_base", 224, None, "15.4", "662.8", "83.5 / 85.2"),
        _image("ConvNeXt-B", "convnext_base", 224, None, "15.4", "969.0 (+46%)", "83.8 / 85.8"),
        _image("Swin-B", "swin_base_384", 384, None, "47.1", "242.5", "84.5 / 86.4"),
        _image("ConvNeXt-B", "convnext_base", 384, None, "45.0", "336.6 (+39%)", "85.1 / 86.8"),
        _image("Swin-L", "swin_large", 224, None, "34.5", "435.9", "- / 86.3"),
        _image("ConvNeXt-L", "convnext_large", 224, None, "34.4", "611.5 (+40%)", "84.3 / 86.6"),
        _image("Swin-L", "swin_large_384", 384, None, "103.9", "157.9", "- / 87.3"),
        _image("ConvNeXt-L", "convnext_large", 384, None, "101.0", "211.4 (+34%)", "85.5 / 87.5"),
        _image("ConvNeXt-XL", "convnext_xlarge", 224, None, "60.9", "424.4", "- / 87.0"),
        _image("ConvNeXt-XL", "convnext_xlarge", 384, None, "179.0", "147.4", "- / 87.8"),
    ),
)

V2 = PaperTable(
    "v2",
    "ConvNeXt V2, fine-tuned on ImageNet-1K",
    ("top-1", "config"),
    _under(
        "FCMAE pre-trained on ImageNet-1K",
        _released("ConvNeXt V2-A", "convnextv2_atto", 224, "3.7", "0.55", "76.7", "fcmae_ft_in1k"),
        _released("ConvNeXt V2-F", "convnextv2_femto", 224, "5.2", "0.78", "78.5", "fcmae_ft_in1k"),
        _released("ConvNeXt V2-P", "convnextv2_pico", 224, "9.1", "1.37", "80.3", "fcmae_ft_in1k"),
        _released("ConvNeXt V2-N", "convnextv2_nano", 224, "15.6", "2.45", "81.9", "fcmae_ft_in1k"),
        _released("ConvNeXt V2-T", "convnextv2_tiny", 224, "28.6", "4.47", "83.0", "fcmae_ft_in1k"),
        _released("ConvNeXt V2-B", "convnextv2_base", 224, "89", "15.4", "84.9", "fcmae_ft_in1k"),
        _released("ConvNeXt V2-L", "convnextv2_large", 224, "198", "34.4", "85.8", "fcmae_ft_in1k"),
        _released("ConvNeXt V2-H", "convnextv2_huge", 224, "660", "115", "86.3", "fcmae_ft_in1k"),
    )
    + _under(
        "fine-tuned on ImageNet-22K in between",
        _released("ConvNeXt V2-N", "convnextv2_nano", 224, "15.6", "2.45", "82.1", "in22k_ft_in1k_224"),
        _released("ConvNeXt V2-N", "convnextv2_nano", 384, "15.6", "7.21", "83.4", "in22k_ft_in1k_384"),
        _released("ConvNeXt V2-T", "convnextv2_tiny", 224, "28.6", "4.47", "83.9", "in22k_ft_in1k_224"),
        _released("ConvNeXt V2-T", "convnextv2_tiny", 384, "28.6", "13.1", "85.1", "in22k_ft_in1k_384"),
        _released("ConvNeXt V2-B", "convnextv2_base", 224, "89", "15.4", "86.8", "in22k_ft_in1k_224"),
        _released("ConvNeXt V2-B", "convnextv2_base", 384, "89", "45.2", "87.7", "in22k_ft_in1k_384"),
        _released("ConvNeXt V2-L", "convnextv2_large", 224, "198", "34.4", "87.3", "in22k_ft_in1k_224"),
        _released("ConvNeXt V2-L", "convnextv2_large", 384, "198", "101.1", "88.2", "in22k_ft_in1k_384"),
        _released("ConvNeXt V2-H", "convnextv2_huge", 384, "660", "337.9", "88.7", "in22k_ft_in1k_384"),
        _released("ConvNeXt V2-H", "convnextv2_huge", 512, "660", "600.8", "88.9", "in22k_ft_in1k_512"),
    ),
)

_LSJ = "detection/mask_rcnn_convnextv2_{}_coco_lsj_3x"
_FCMAE = "FCMAE"
_SUPERVISED = "supervised"
_SIMMIM = "SimMIM"
_SWIN_ATTENTION = (
    "{} G leave out the {} G of attention's products, which are no modules and which the counter of mmcv 1.x, by which "
    "detectors were counted, does not see"
)

V2_ON_COCO = PaperTable(
    "v2-coco",
    "ConvNeXt V2 on COCO with Mask R-CNN, 3x schedule with large-scale jitter (Table 6 of V2)",
    ("pre-training", "box AP", "AP50", "AP75", "mask AP", "AP50", "AP75", "config"),
    (
        _v2_coco("ConvNeXt V1-B", _SUPERVISED, "convnext_base", "486", "50.3 71.6 56.1 44.9 68.5 48.8"),
        _v2_coco("ConvNeXt V2-B", _SUPERVISED, "convnextv2_base", "486", "51.0 72.4 56.6 45.6 69.5 49.7"),
        _v2_coco("Swin-B", _SIMMIM, "swin_base", "497", "52.3 - - - - -"),
        _v2_coco(
            "ConvNeXt V2-B", _FCMAE, "convnextv2_base", "486", "52.9 72.6 58.9 46.6 70.0 51.1", _LSJ.format("base")
        ),
        _v2_coco("ConvNeXt V1-L", _SUPERVISED, "convnext_large", "875", "50.6 71.5 56.3 45.1 68.7 49.2"),
        _v2_coco("ConvNeXt V2-L", _SUPERVISED, "convnextv2_large", "875", "51.5 72.5 57.3 45.8 69.4 49.9"),
        _v2_coco("Swin-L", _SIMMIM, "swin_large", "904", "53.8 - - - - -"),
        _v2_coco(
            "ConvNeXt V2-L", _FCMAE, "convnextv2_large", "875", "54.4 73.9 60.4 47.7 71.4 52.3", _LSJ.format("large")
        ),
        PaperRow("Swin V2-H", None, DETECTOR_SHAPE, None, None, (_SIMMIM, "54.4", *"------")),
        _v2_coco(
            "ConvNeXt V2-H", _FCMAE, "convnextv2_huge", "2525", "55.7 75.2 61.8 48.9 72.8 53.6", _LSJ.format("huge")
        ),
    ),
    {
        ("Swin-B", DETECTOR_SHAPE[0], "flops"): ExplainedCount("504.16", _SWIN_ATTENTION.format("497", "6.97")),
        ("Swin-L", DETECTOR_SHAPE[0], "flops"): ExplainedCount("914.85", _SWIN_ATTENTION.format("904", "10.46")),
    },
)

_ADE = "segmentation/upernet_convnextv2_{}_ade20k_160k"

V2_ON_ADE20K = PaperTable(
    "v2-ade20k",
    "ConvNeXt V2 on ADE20K with UperNet, multi-scale testing (Table 7 of V2)",
    ("pre-training", "crop", "mIoU", "config"),
    (
        _v2_ade("ConvNeXt V1-B", _SUPERVISED, "convnext_base", 512, "49.9", "122", "1170"),
        _v2_ade("ConvNeXt V2-B", _SUPERVISED, "convnextv2_base", 512, "50.5", "122", "1170"),
        _v2_ade("Swin-B", _SIMMIM, "swin_base", 512, "52.8", "121", "1181"),
        _v2_ade("ConvNeXt V2-B", _FCMAE, "convnextv2_base", 512, "52.1", "122", "1170", _ADE.format("base")),
        _v2_ade("ConvNeXt V1-L", _SUPERVISED, "convnext_large", 512, "50.5", "235", "1573"),
        _v2_ade("ConvNeXt V2-L", _SUPERVISED, "convnextv2_large", 512, "51.6", "235", "1573"),
        _v2_ade("Swin-L", _SIMMIM, "swin_large", 512, "53.5", "234", "1601"),
        _v2_ade("ConvNeXt V2-L", _FCMAE, "convnextv2_large", 512, "53.7", "235", "1573", _ADE.format("large")),
        PaperRow("Swin V2-H", None, SEGMENTOR_SHAPE, None, None, (_SIMMIM, "512²", "54.2", "-")),
        _v2_ade("ConvNeXt V2-H", _FCMAE, "convnextv2_huge", 512, "55.0", "707", "3272", _ADE.format("huge")),
        _v2_ade(
            "ConvNeXt V2-H", f"{_FCMAE}, 22K", "convnextv2_huge", 640, "57.0", "707", "5113", _ADE.format("huge_in22k")
        ),
    ),
)

TABLES = {
    table.number: table
    for table in (
        *(ON_IMAGENET, ISOTROPIC_AND_VIT, ON_COCO, ON_ADE20K, ON_ADE20K_SINGLE_SCALE, ROBUSTNESS),
        *(SPECIFICATIONS, FROM_RESNET50, FROM_RESNET200, ON_A100, V2, V2_ON_COCO, V2_ON_ADE20K),
    )
}
