"""The two layouts of a masked encoder against a sparse convolutional network written out position by position."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.convnext import ConvNeXt
from backbones.masked import DenseLayout, PackedLayout, hidden_mask
from backbones.registry import build_backbone

SIZES = ("convnextv2_atto", "convnextv2_femto", "convnextv2_pico", "convnextv2_nano", "convnextv2_tiny")


class SparseMap:
    """Features of some positions of one image: ``features (P, C)`` at ``places (P, 2)``, row and column."""

    def __init__(self, places: Tensor, features: Tensor) -> None:
        self.places, self.features = places, features

    def numbers(self, places: Tensor) -> Tensor:
        """Number of the position at each place, -1 where there is none."""
        table = {tuple(place): number for number, place in enumerate(self.places.tolist())}
        return torch.tensor([table.get(tuple(place), -1) for place in places.tolist()])

    def gathered(self, places: Tensor) -> Tensor:
        """Features at places, zero where there is no position."""
        padded = torch.cat([self.features, self.features.new_zeros(1, self.features.shape[1])])
        return padded[self.numbers(places)]

    def depthwise(self, conv: torch.nn.Conv2d) -> Tensor:
        """Depthwise convolution over the positions that there are."""
        side = conv.kernel_size[0]
        total = conv.bias.expand(len(self.places), -1)
        for row in range(side):
            for column in range(side):
                shift = torch.tensor([row - side // 2, column - side // 2])
                total = total + self.gathered(self.places + shift) * conv.weight[:, 0, row, column]
        return total

    def strided(self, conv: torch.nn.Conv2d) -> SparseMap:
        """Convolution of side and stride 2: every place of the coarser map has all four positions."""
        places = torch.unique(self.places // 2, dim=0)
        total = conv.bias.expand(len(places), -1)
        for row in range(2):
            for column in range(2):
                corner = self.gathered(2 * places + torch.tensor([row, column]))
                total = total + corner @ conv.weight[..., row, column].T
        return SparseMap(places, total)


def sparse_reference(network: ConvNeXt, image: Tensor, units: Tensor, columns: int) -> Tensor:
    """Last map ``(C, rows, columns)`` of the visible units of one image ``(3, H, W)``."""
    unit = torch.stack([units // columns, units % columns], 1)
    inner = torch.cartesian_prod(torch.arange(8), torch.arange(8))
    places = (8 * unit[:, None] + inner).flatten(0, 1)
    stem, norm = network.downsample_layers[0]
    patches = torch.stack([image[:, 4 * r : 4 * r + 4, 4 * c : 4 * c + 4] for r, c in places.tolist()])
    sparse = SparseMap(places, norm(F.conv2d(patches, stem.weight, stem.bias, stride=4)).flatten(1))
    for stage in range(4):
        if stage:
            norm, conv = network.downsample_layers[stage]
            normed = F.layer_norm(sparse.features, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
            sparse = SparseMap(sparse.places, normed).strided(conv)
        for block in network.stages[stage]:
            y = F.gelu(block.pwconv1(block.norm(sparse.depthwise(block.dwconv))))
            response = y.square().sum(0).sqrt()
            relative = response / (response.mean() + 1e-6)
            y = block.grn.gamma.flatten() * (y * relative) + block.grn.beta.flatten() + y
            sparse = SparseMap(sparse.places, sparse.features + block.pwconv2(y))
    rows = image.shape[1] // 32
    out = image.new_zeros(sparse.features.shape[1], rows * columns)
    numbers = sparse.places[:, 0] * columns + sparse.places[:, 1]
    return out.index_copy(1, numbers, sparse.features.T).unflatten(1, (rows, -1))


def masked_case(name: str, size: tuple[int, int], ratio: float, images: int = 2) -> tuple[ConvNeXt, Tensor, Tensor]:
    """Network with weights that leave no layer idle, images and visible units."""
    torch.manual_seed(0)
    network = build_backbone(name)
    assert isinstance(network, ConvNeXt)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    units = (size[0] // 32) * (size[1] // 32)
    visible = torch.stack([torch.randperm(units)[: int(units * (1 - ratio))].sort().values for _ in range(images)])
    return network, torch.randn(images, 3, *size), visible


def gradients(network: ConvNeXt, out: Tensor) -> dict[str, Tensor]:
    """Gradients of the parameters for a fixed random gradient of the output, in float64."""
    network.zero_grad()
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    (out * weight.to(out)).sum().backward()
    return {name: one.grad.double() for name, one in network.named_parameters() if one.grad is not None}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        error = (tensor - expected[name]).norm() / expected[name].norm()
        assert error < tolerance, f"{name}: {error:.2g}"


@pytest.mark.parametrize(
    ("name", "size", "ratio"),
    [(name, (64, 96), 0.6) for name in SIZES] + [(SIZES[0], (96, 100), 0.5), (SIZES[0], (130, 33), 0.75)],
)
def test_both_layouts_are_a_sparse_network(name: str, size: tuple[int, int], ratio: float) -> None:
    network, images, visible = masked_case(name, size, ratio)
    network, images = network.double(), images.double()
    columns = size[1] // 32
    reference = torch.stack([sparse_reference(network, *one, columns) for one in zip(images, visible, strict=True)])
    expected = {"out": reference.detach(), **gradients(network, reference)}
    for form, precise in (("dense", True), ("packed", True), ("dense", False), ("packed", False)):
        kind = torch.float64 if precise else torch.float32
        network = network.to(kind)
        out = network(images.to(kind), visible, form)
        found = {"out": out.detach().double(), **gradients(network, out)}
        assert_close(found, expected, 1e-10 if precise else 1e-4)
        network = network.double()


def test_a_hidden_unit_changes_nothing() -> None:
    network, images, visible = masked_case(SIZES[0], (64, 64), 0.5)
    hidden = hidden_mask(visible, (2, 2)).repeat_interleave(32, 1).repeat_interleave(32, 2)[:, None]
    for form in ("dense", "packed"):
        out = network(images, visible, form)
        assert torch.equal(out, network(torch.where(hidden, torch.full_like(images, 7.0), images), visible, form))
        assert not out[hidden_mask(visible, (2, 2))[:, None].expand_as(out)].any()


def test_a_packed_layout_of_some_images_is_that_of_these_alone() -> None:
    units = torch.tensor([[0, 3], [1, 4], [2, 5]])
    layout = PackedLayout.of(units, (2, 3), 2)
    x = torch.randn(3, 5, 4, 2)
    whole = layout.unpack(x)
    assert torch.equal(layout.pack(whole), x)
    for images in (slice(1, 3), torch.tensor([2, 0])):
        assert torch.equal(layout.of_images(images).unpack(x[images]), whole[images])


def test_layouts_agree_on_what_is_visible() -> None:
    units = torch.tensor([[1, 2, 5], [0, 3, 4]])
    packed, dense = PackedLayout.of(units, (2, 3), 4), DenseLayout.of(units, (2, 3), 4)
    ones = torch.ones(2, 1, 8, 12)
    assert torch.equal(packed.unpack(packed.pack(ones)), dense.unpack(ones))


@pytest.mark.parametrize("selection", [True, 0.5, (0, 2)], ids=str)
def test_recomputed_blocks_give_the_same_gradients(selection: bool | float | tuple[int, ...]) -> None:
    found = []
    for grad_checkpointing in (False, selection):
        network, images, visible = masked_case(SIZES[0], (64, 96), 0.5)
        again = build_backbone(SIZES[0], grad_checkpointing=grad_checkpointing)
        again.load_state_dict(network.state_dict())
        found.append(gradients(again.train(), again(images, visible)))
    assert_close(*found, 1e-5)
