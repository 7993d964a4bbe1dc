"""The C code's arithmetic with NEON, in an emulator, where a compiler for Arm and QEMU are installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from backbones.convnext import Block
from backbones.kernels.autotune import autotuner
from backbones.kernels.cpu import native
from backbones.kernels.cpu.block import _weights

COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
# Sizes as arguments, weights and a map through the standard input, the block's output through the standard output.
PROGRAM = """
#include "native.c"
#include <stdio.h>
#include <stdlib.h>

static float *numbers(size_t count, int read) {
  float *found = calloc(count, sizeof(float));
  if (read && fread(found, sizeof(float), count, stdin) != count) exit(1);
  return found;
}

int main(int count, char **sizes) {
  int64_t all[10];
  for (int i = 0; i < 10 && i + 1 < count; i++) all[i] = atoll(sizes[i + 1]);
  Block block = {all[0], all[1], all[2], all[3], all[4], all[5], all[6], all[7], all[8], all[9], 1e-6f};
  const size_t channels = block.channels, values = block.images * block.height * block.width * channels;
  block.conv = numbers(block.side * block.side * channels, 1), block.conv_bias = numbers(channels, 1);
  block.scale = numbers(channels, 1), block.shift = numbers(channels, 1);
  block.first = numbers(block.hidden * channels, 1), block.first_bias = numbers(block.hidden, 1);
  block.second = numbers(block.hidden * channels, 1), block.second_bias = numbers(channels, 1);
  float *x = numbers(values, 1), *out = numbers(values, 0);
  whole_float32_float32(&block, x, out, numbers(block.threads * block.scratch, 0));
  return fwrite(out, sizeof(float), values, stdout) != values;
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not all(map(shutil.which, (COMPILER, EMULATOR))):
        pytest.skip(f"no {COMPILER} or no {EMULATOR}")
    folder = tmp_path_factory.mktemp("neon")
    (folder / "main.c").write_text(PROGRAM)
    flags = ["-O3", "-fno-math-errno", "-fopenmp", "-static", *native.VECTOR_FORMS["NEON"].definitions()]
    command = [
        COMPILER,
        *flags,
        "-I",
        str(native.SOURCE.parent),
        "-o",
        str(folder / "main"),
        str(folder / "main.c"),
        "-lm",
    ]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "main"


@pytest.mark.parametrize(("channels", "side"), [(16, 3), (20, 7), (48, 7), (28, 11)])
def test_a_block_with_neon(channels: int, side: int, program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "simd_name", lambda: "NEON")
    block = Block(channels, kernel_size=side, layer_scale_init_value=0.5).eval()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 9, 20, channels)
    weights = _weights(block, torch.float32)
    assert weights is not None
    packed = native.pack_block(weights, torch.float32)
    struct, _ = native._describe(x, packed, 1e-6, 2 * 9 * 20)
    sizes = [str(getattr(struct, name)) for name, _ in struct._fields_[:10]]
    data = b"".join(one.numpy().tobytes() for one in (*packed, x))
    ended = subprocess.run([EMULATOR, str(program), *sizes], input=data, capture_output=True, check=True)
    found = torch.frombuffer(bytearray(ended.stdout), dtype=torch.float32).view_as(x).double()
    with torch.no_grad(), autotuner.use(cpu_block="plain"):
        expected: Tensor = block.double()(x.permute(0, 3, 1, 2).double()).permute(0, 2, 3, 1)
    assert float((found - expected).norm() / expected.norm()) < 2e-6
