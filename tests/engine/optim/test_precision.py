"""Islands of float32 in mixed precision: values that would overflow in float16 or lose their digits in bfloat16."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mmcv.ops import multi_scale_deform_attn
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import classification
import segmentation  # noqa: F401
from backbones import build_backbone
from backbones.layers import GRN, LayerNorm2d
from engine.config.load import load_config
from engine.config.world import Launch
from engine.optim.precision import attention_in_float32, losses_in_float32
from engine.training.build import build_runner

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
HALVES = (torch.float16, torch.bfloat16)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
SMALL = {"model.backbone.depths": (1, 1, 1, 1), "model.backbone.dims": (8, 8, 16, 16)}


def response_normalisation(channels: int) -> GRN:
    """With a scale at which the response decides the result."""
    layer = GRN(channels)
    torch.manual_seed(0)
    nn.init.normal_(layer.gamma, std=4)
    nn.init.normal_(layer.beta)
    return layer


@pytest.mark.parametrize("device", DEVICES)
def test_response_normalisation_does_not_overflow(device: str) -> None:
    layer = response_normalisation(16).to(device)
    x = (torch.rand(2, 32, 32, 16, device=device) * 6000).half().requires_grad_()
    assert float(torch.linalg.vector_norm(x.detach().float(), dim=(1, 2)).min()) > torch.finfo(torch.half).max
    with torch.autocast(device, torch.float16):
        y = layer(x / 1000)
        z = layer(x)
    assert z.dtype == torch.float16
    # The response is relative: a thousand times the input gives a thousand times the output, but for the shift.
    torch.testing.assert_close(z.float() / 1000, y.float() - layer.beta * 0.999, rtol=0.02, atol=0.02)
    (z.float() / 1000).sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("half", HALVES, ids=str)
def test_response_normalisation_keeps_the_digits(device: str, half: torch.dtype) -> None:
    """Half precision costs the rounding of the result, nothing on the way to it."""
    layer = response_normalisation(64).to(device)
    x = torch.randn(2, 16, 16, 64, device=device).to(half)
    with torch.autocast(device, half):
        y = layer(x)
    exact = layer.double()(x.double())
    assert y.dtype == half
    torch.testing.assert_close(y.double(), exact, rtol=torch.finfo(half).eps / 2, atol=1e-6)


def test_response_normalisation_is_as_published() -> None:
    """In float64 to its last bits; in float32 no further from that than the published order of operations."""

    def published(x: Tensor) -> Tensor:
        response = x.norm(p=2, dim=(1, 2), keepdim=True)
        response = response / (response.mean(-1, keepdim=True) + 1e-6)
        return x + layer.gamma * (x * response) + layer.beta

    layer, x = response_normalisation(64), torch.randn(2, 50, 70, 64)
    found, other = layer(x), published(x)
    exact = layer.double()(x.double())
    torch.testing.assert_close(exact, published(x.double()), rtol=1e-14, atol=1e-14)
    assert (found - exact).norm() <= (other - exact).norm() < 1e-6 * exact.norm()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("half", HALVES, ids=str)
def test_statistics_of_a_layer_norm_keep_the_digits(device: str, half: torch.dtype) -> None:
    """The mean is a hundred times the deviation, so that squares in half precision would leave nothing of it."""
    layer = LayerNorm2d(64).to(device)
    x = (torch.randn(2, 64, 4, 4, device=device) * 2 + 200).to(half)
    with torch.autocast(device, half):
        y = layer(x)
    torch.testing.assert_close(y.double(), layer.double()(x.double()), rtol=torch.finfo(half).eps / 2, atol=1e-5)


# ---- what autocast does on a GPU, without one: tensors without content that pretend to be there


class Watch(TorchDispatchMode):
    """Writes down the dtypes that operators compute in."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: dict[str, set[torch.dtype]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if name := func.overloadpacket.__name__:
            # A norm that is asked for float32 adds up in it, whatever it reads.
            seen = result if "vector_norm" in name else args
            tensors = [one for one in tree_leaves(seen) if isinstance(one, Tensor) and one.is_floating_point()]
            self.dtypes.setdefault(name, set()).update(one.dtype for one in tensors)
        return result


@contextmanager
def pretended_gpu(half: torch.dtype) -> Iterator[Watch]:
    """Inside, ``cuda`` tensors have no content and mixed precision is on."""
    with FakeTensorMode(allow_non_fake_inputs=True), Watch() as watch:
        torch.set_autocast_enabled("cuda", True)
        torch.set_autocast_dtype("cuda", half)
        try:
            yield watch
        finally:
            torch.set_autocast_enabled("cuda", False)


@pytest.mark.parametrize("half", HALVES, ids=str)
@pytest.mark.parametrize("name", ["convnext_atto", "convnextv2_atto", "swin_tiny", "vit_small"])
def test_norms_of_the_networks_on_a_gpu(name: str, half: torch.dtype) -> None:
    with torch.device("meta"):
        network = build_backbone(name)
    with pretended_gpu(half) as watch:
        network.to_empty(device="cuda")(torch.empty(1, 3, 224, 224, device="cuda"))
    assert watch.dtypes["native_layer_norm"] == {torch.float32}
    assert watch.dtypes["addmm"] == watch.dtypes["convolution"] == {half}  # mixed precision is on
    if "v2" in name:
        assert watch.dtypes["linalg_vector_norm"] == {torch.float32}


@pytest.mark.parametrize("half", HALVES, ids=str)
def test_losses_of_a_classifier_on_a_gpu(half: torch.dtype) -> None:
    with torch.device("meta"):
        backbone = dict(type="convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 16, 16))
        model = classification.model.ImageClassifier(backbone, 5)
    with pretended_gpu(half) as watch:
        model = model.to_empty(device="cuda")
        loss = model(torch.empty(2, 3, 32, 32, device="cuda"), torch.empty(2, 5, device="cuda"), "loss")["loss"]
    assert loss.dtype == torch.float32
    assert watch.dtypes["_log_softmax"] == {torch.float32}
    assert watch.dtypes["addmm"] == {half}


@pytest.mark.parametrize(
    "loss, operator",
    [
        (dict(type="mmdet.CrossEntropyLoss"), "_log_softmax"),
        (dict(type="mmdet.CrossEntropyLoss", use_sigmoid=True), "binary_cross_entropy_with_logits"),
        (dict(type="mmseg.CrossEntropyLoss"), "_log_softmax"),
    ],
    ids=str,
)
def test_cross_entropy_on_a_gpu(loss: dict[str, Any], operator: str) -> None:
    """Autocast alone would leave the logarithms of the scores in half precision."""
    model = nn.Module()
    model.loss_cls = MODELS.build(loss)
    losses_in_float32(model)
    with pretended_gpu(torch.float16) as watch:
        scores = torch.empty(6, 3, device="cuda", dtype=torch.float16)
        shape, kind = ((6, 3), torch.float32) if loss.get("use_sigmoid") else ((6,), torch.long)
        value = model.loss_cls(scores, torch.zeros(shape, device="cuda", dtype=kind))
    assert watch.dtypes[operator] == {torch.float32}
    assert value.dtype == torch.float32


# ---- whole models


def small_model(config: str) -> Any:
    cfg = load_config(CONFIGS / config, SMALL, Launch(), training=False).cfg
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    losses_in_float32(model)
    return model.train()


def segmentation_batch() -> dict[str, Any]:
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    labels = torch.randint(10, (2, 1, 128, 128))
    samples = [SegDataSample(metainfo=dict(img_shape=(128, 128))) for _ in labels]
    for sample, label in zip(samples, labels, strict=True):
        sample.gt_sem_seg = PixelData(data=label)
    return {"inputs": [torch.randint(255, (3, 128, 128), dtype=torch.uint8) for _ in samples], "data_samples": samples}


def detection_batch() -> dict[str, Any]:
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    sample = DetDataSample(metainfo=dict(img_shape=(64, 64), batch_input_shape=(64, 64), pad_shape=(64, 64)))
    masks = torch.ones(1, 64, 64, dtype=torch.uint8).numpy()
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor([[8.0, 8.0, 50.0, 50.0]]), labels=torch.tensor([3]), masks=BitmapMasks(masks, 64, 64)
    )
    return {"inputs": [torch.randint(255, (3, 64, 64), dtype=torch.uint8)], "data_samples": [sample]}


@pytest.mark.parametrize(
    "config, batch, count",
    [
        ("segmentation/upernet_digits.py", segmentation_batch, 2),
        ("detection/mask_rcnn_digits.py", detection_batch, 5),
    ],
    ids=["segmentor", "detector"],
)
def test_losses_of_dense_models(config: str, batch: Any, count: int) -> None:
    """Scores are in half precision, and every loss sees them in float32."""
    model = small_model(config)
    seen: dict[str, set[torch.dtype]] = {}
    produced: set[torch.dtype] = set()

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            floats = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor) and one.is_floating_point()]
            seen.setdefault(name, set()).update(one.dtype for one in floats)

        return hook

    for name, module in model.named_modules():
        if name.rpartition(".")[2].startswith("loss_"):
            module.register_forward_pre_hook(note(name), with_kwargs=True)
        elif name.endswith(("conv_seg", "fc_cls", "rpn_cls", "conv_logits")):
            module.register_forward_hook(lambda module, args, output: produced.add(output.dtype))
    data = model.data_preprocessor(batch(), True)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(**data, mode="loss")
    total, _ = model.parse_losses(losses)
    total.backward()
    assert produced == {torch.bfloat16}
    assert len(seen) == count
    assert all(dtypes == {torch.float32} for dtypes in seen.values()), seen
    assert total.dtype == torch.float32
    assert all(param.grad.isfinite().all() for param in model.parameters() if param.grad is not None)


def test_a_loss_in_float32_is_that_of_the_scores_as_they_are() -> None:
    model = nn.Module()
    model.loss_cls = nn.CrossEntropyLoss()
    model.head = nn.Identity()
    losses_in_float32(model)
    scores, labels = torch.randn(8, 4).bfloat16(), torch.arange(8) % 4
    assert torch.equal(model.loss_cls(scores, labels), F.cross_entropy(scores.float(), labels))
    assert model.head(scores).dtype == torch.bfloat16


def test_every_training_has_these_losses(tmp_path: Path) -> None:
    options = {**SMALL, "work_dir": str(tmp_path)}
    runner = build_runner(load_config(CONFIGS / "segmentation/upernet_digits.py", options, Launch()), Launch())
    scores = torch.randn(2, 11, 4, 4)
    for head in (runner.model.decode_head, runner.model.auxiliary_head):
        loss = head.loss_decode(scores.bfloat16(), torch.zeros(2, 4, 4, dtype=torch.long))
        assert loss.dtype == torch.float32


@pytest.mark.gpu
@pytest.mark.parametrize("half", HALVES, ids=str)
def test_training_in_mixed_precision_follows_float32(half: torch.dtype) -> None:
    """Ten steps with the scaler; the losses stay within the rounding of half precision, and none is lost."""
    from mmengine.optim import AmpOptimWrapper, OptimWrapper

    curves = []
    for kind, options in ((OptimWrapper, {}), (AmpOptimWrapper, dict(dtype=half))):
        torch.manual_seed(0)
        network = build_backbone("convnextv2_atto", dims=(16, 32, 64, 128))
        model = nn.Sequential(network, nn.Linear(128, 10)).cuda()
        wrapper = kind(
            optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3), clip_grad=dict(max_norm=1.0), **options
        )
        x, labels = torch.randn(16, 3, 64, 64, device="cuda"), torch.arange(16, device="cuda") % 10
        losses = []
        for _ in range(10):
            with wrapper.optim_context(model):
                loss = F.cross_entropy(model(x).float(), labels)
            wrapper.update_params(loss)
            losses.append(loss.item())
        curves.append(losses)
    assert curves[0][-1] < curves[0][0]
    assert curves[1] == pytest.approx(curves[0], abs=0.05)


@pytest.mark.parametrize("device", DEVICES)
def test_deformable_attention_samples_float32(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    plain = multi_scale_deform_attn.multi_scale_deformable_attn_pytorch

    def sampled(value: Tensor, *args: Any) -> Tensor:
        seen.append(value.dtype)
        return plain(value, *args)

    monkeypatch.setattr(multi_scale_deform_attn, "multi_scale_deformable_attn_pytorch", sampled)
    layer = multi_scale_deform_attn.MultiScaleDeformableAttention(8, 2, 1, 2).to(device).eval()
    query, points = torch.randn(4, 1, 8, device=device), torch.rand(1, 4, 1, 2, device=device)
    shapes, starts = (torch.tensor(numbers, device=device) for numbers in ([[2, 2]], [0]))

    def run(dtype: torch.dtype) -> Tensor:
        with torch.autocast(device, dtype):
            out: Tensor = layer(
                query,
                reference_points=points,
                spatial_shapes=shapes,
                level_start_index=starts,
            )
        return out

    before = run(torch.bfloat16)
    attention_in_float32(nn.Sequential(layer))
    after = run(torch.bfloat16)
    run(torch.float16)
    assert seen[0] == torch.bfloat16
    assert torch.bfloat16 not in seen[1:]
    torch.testing.assert_close(before, after, atol=0.02, rtol=0.02)
