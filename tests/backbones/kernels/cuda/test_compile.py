"""The kernels compile for Hopper on a machine without a GPU, and stay in its registers."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from backbones.kernels.cuda import (
    dwconv_norm,
    dwconv_norm_triton,
    grn,
    grn_triton,
    mlp_triton,
    packed_dwconv,
    packed_dwconv_triton,
)
from engine.mmcv_ops import ms_deform_attn, ms_deform_attn_triton
from tests.programs import PATIENCE

TOOL = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
pytestmark = pytest.mark.skipif(not TOOL.exists(), reason="this build of Triton has no tools for NVIDIA GPUs")

HOPPER = GPUTarget("cuda", 90, 32)
MAPS = {"x", "out", "grad", "conv", "again", "z", "values", "locations", "weights", "grad_locations", "grad_weights"}
COUNTS = {"height", "width", "units", "band", "pixels", "steps", "visible", "rows", "columns", "tiles"}
COUNTS |= {"per_image", "keys", "levels", "points"}
TABLES = {"numbers": "*i64", "slots": "*i32", "shapes": "*i64"}
MASKED = 96  # channels in three chunks
TALL = dwconv_norm.candidate_tiles(MASKED, 7)["tall"]
SHAPE = dict(C=MASKED, K=7, ROWS=TALL.rows, COLS=TALL.cols, BLOCK=TALL.block)
UNITS = packed_dwconv.packed_candidate_tiles(MASKED, 8)["wide"]
PACKED = dict(C=MASKED, K=7, SIDE=8, ROWS=UNITS.rows, BLOCK=UNITS.block)
HEADS = dict(HEADS=8, C=32, ROWS=ms_deform_attn.ATTENTION_ELEMENTS // 32, BLOCK=32)
TILE = dict(C=384, ROWS=grn.TILE_ROWS, BLOCK=grn.TILE_CHANNELS)
KERNELS: list[tuple[Any, dict[str, Any], int, int]] = [  # kernel, sizes, warps, registers at most
    (dwconv_norm_triton.conv_norm_kernel, dict(**SHAPE, SAVE=True), TALL.warps, 255),
    (dwconv_norm_triton.input_grad_kernel, SHAPE, TALL.warps, 208),
    (dwconv_norm_triton.weight_grad_kernel, dict(C=MASKED, K=7, TAPS=7, COLS=8, BLOCK=32), 4, 168),
    (dwconv_norm_triton.norm_grad_kernel, dict(C=MASKED, ROWS=16, BLOCK=128), 4, 128),
    (grn_triton.squares_kernel, dict(**TILE, GELU=True), grn.TILE_WARPS, 64),
    (grn_triton.apply_kernel, dict(**TILE, GELU=True, GRN=True), grn.TILE_WARPS, 64),
    (grn_triton.sums_kernel, dict(**TILE, GELU=True), grn.TILE_WARPS, 64),
    (grn_triton.grad_kernel, dict(**TILE, GELU=True, GRN=True), grn.TILE_WARPS, 128),
    (mlp_triton.residual_kernel, dict(**TILE, GAMMA=True, KEEP=True), grn.TILE_WARPS, 64),
    (mlp_triton.residual_grad_kernel, dict(**TILE, GAMMA=True, KEEP=True, STORE=True), grn.TILE_WARPS, 128),
    (
        packed_dwconv_triton.packed_conv_kernel,
        dict(**PACKED, UNITS=UNITS.cols // 8, COLS=UNITS.cols, GRAD=False),
        UNITS.warps,
        144,
    ),
    (ms_deform_attn_triton.attention_kernel, HEADS, ms_deform_attn.ATTENTION_WARPS, 48),
    (ms_deform_attn_triton.attention_grad_kernel, HEADS, ms_deform_attn.ATTENTION_WARPS, 64),
    (packed_dwconv_triton.packed_weight_grad_kernel, dict(**PACKED, TAPS=7, UNITS=1, COLS=8), 4, 255),
]


def kind(name: str) -> str:
    """Type of an argument in training in bfloat16."""
    if name in COUNTS:
        return "i32"
    if name in TABLES:
        return TABLES[name]
    return "fp32" if name == "eps" else "*bf16" if name in MAPS else "*fp32"


@pytest.mark.parametrize("kernel, sizes, warps, registers", KERNELS, ids=[row[0].__name__ for row in KERNELS])
def test_compiles_for_hopper_without_spilling(
    kernel: Any, sizes: dict[str, Any], warps: int, registers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    signature = {name: "constexpr" if name in sizes else kind(name) for name in kernel.arg_names}
    attributes = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(signature) if signature[name][0] == "*"}
    source = ASTSource(fn=kernel, signature=signature, constexprs=sizes, attrs=attributes)
    compiled = triton.compile(source, target=HOPPER, options={"num_warps": warps})
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    report = subprocess.run(
        [TOOL, "-res-usage", cubin], capture_output=True, text=True, timeout=PATIENCE, check=True
    ).stdout
    used = {name: int(count) for name, count in re.findall(r"(REG|STACK|LOCAL):(\d+)", report)}
    assert used["STACK"] == used["LOCAL"] == 0
    assert used["REG"] <= registers
    assert compiled.metadata.shared <= 8192
