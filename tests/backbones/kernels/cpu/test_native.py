"""The compiled block beside the plain one in float64, in all its sizes, and machines that cannot compile it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from backbones.convnext import Block, Downsampling
from backbones.errors import MachineError
from backbones.kernels.autotune import autotuner
from backbones.kernels.cpu import library, native
from backbones.kernels.cpu.block import _candidates, _weights
from backbones.kernels.cpu.dispatch import simd_name
from backbones.kernels.cpu.weight_cache import weight_cache
from tests.programs import PATIENCE

BOUNDS = {torch.float32: 2e-6, torch.bfloat16: 6e-3}
# Instruction sets and precisions of the products. Only AVX-512 has those of bfloat16.
FORMS = [("AVX512", torch.float32), ("AVX512", torch.bfloat16), ("AVX2", torch.float32)]
each_form = pytest.mark.parametrize(("simd", "dtype"), FORMS, indirect=["simd"])
each_simd = pytest.mark.parametrize("simd", ["AVX512", "AVX2"], indirect=True)
# Images, height and width: rows longer than a tile, many short ones, tiles that end within a row, a map of one value.
SHAPES = [(1, 3, 300), (5, 7, 7), (2, 40, 33), (3, 1, 1), (1, 20, 2), (1, 2, 113)]


@pytest.fixture
def simd(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """An instruction set that the C code is compiled for here, limited to what the processor has."""
    if request.param == "AVX512" and simd_name() != "AVX512":
        pytest.skip("no AVX-512")
    monkeypatch.setattr(native, "simd_name", lambda: request.param)
    return str(request.param)


def made(channels: int, grn: bool = False, **settings: Any) -> Block:
    torch.manual_seed(channels)
    block = Block(channels, layer_scale_init_value=0.0 if grn else 0.5, use_grn=grn, **settings).eval()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    return block


def maps(channels: int, images: int, height: int, width: int) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(images, channels, height, width).contiguous(memory_format=torch.channels_last)


def run_natively(block: Block, x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The compiled block's result; an error if another form would run."""
    taken = native.run_native_block
    passes: list[int] = []
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad(), autocast, autotuner.use(cpu_block="native"):
        patch.setattr(native, "run_native_block", lambda *given: (passes.append(1), taken(*given))[1])
        result = block(x)
    assert passes
    return result


def error(found: Tensor, block: Block, x: Tensor) -> float:
    """Of a result, relative to the plain steps in float64."""
    precise = block.double()
    with torch.no_grad(), autotuner.use(cpu_block="plain"):
        expected = precise(x.double())
    block.float()
    assert found.shape == expected.shape
    assert found.is_contiguous(memory_format=torch.channels_last)
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.native
@each_form
@pytest.mark.parametrize("grn", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_any_map(shape: tuple[int, int, int], grn: bool, simd: str, dtype: torch.dtype) -> None:
    block, x = made(32, grn), maps(32, *shape)
    assert error(run_natively(block, x, dtype), block, x) < BOUNDS[dtype]


@pytest.mark.native
@each_form
@pytest.mark.parametrize("channels", [16, 48, 64, 80, 96, 112, 160])
def test_any_width(channels: int, simd: str, dtype: torch.dtype) -> None:
    """All numbers of vectors that a panel of the weights can have."""
    block, x = made(channels, mlp_ratio=3.0), maps(channels, 2, 9, 5)
    assert error(run_natively(block, x, dtype), block, x) < BOUNDS[dtype]


@pytest.mark.native
@each_form
@pytest.mark.parametrize("side", native.NATIVE_KERNEL_SIZES)
def test_any_kernel(side: int, simd: str, dtype: torch.dtype) -> None:
    block, x = made(16, grn=dtype == torch.bfloat16, kernel_size=side), maps(16, 2, 15, 31)
    x = x.to(dtype)
    assert error(run_natively(block, x, dtype), block, x) < BOUNDS[dtype]


@pytest.mark.native
@each_simd
@pytest.mark.parametrize("grn", [False, True])
@pytest.mark.parametrize("threads", [2, 5])
def test_threads_share_the_work_and_change_nothing(threads: int, grn: bool, simd: str) -> None:
    """To the last bit; but for the sums of the response normalisation, whose parts are other ones then."""
    block, x = made(32, grn), maps(32, 3, 20, 20)
    alone = run_natively(block, x)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = run_natively(block, x)
        again = run_natively(block, x)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(together, again)
    assert torch.equal(together, alone) or grn
    assert error(together, block, x) < BOUNDS[torch.float32]


@pytest.mark.native
@each_form
def test_gelu_is_right_everywhere(simd: str, dtype: torch.dtype) -> None:
    """Hidden values from -40 to 40, passed on one by one; to two roundings of float32, or to one of bfloat16."""
    block, inputs = made(16), torch.linspace(-1, 1, 64).bfloat16().float()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.zero_()
        block.pwconv1.weight[:, 0] = inputs
        block.gamma.fill_(1)
        for first, scale in product(range(0, 64, 16), (2**-7, 1.0, 3.0, 6.0, 13.0, 40.0)):
            block.norm.bias.fill_(scale)
            block.pwconv2.weight.zero_()[:, first : first + 16] = torch.eye(16)
            found = run_natively(block, torch.zeros(1, 16, 1, 1), dtype).flatten().double()
            hidden = (scale * inputs[first : first + 16]).double()
            right = nn.functional.gelu(hidden)
            bound = 2 * torch.finfo(torch.float32).eps * hidden.abs()
            if dtype == torch.bfloat16:
                bound = torch.finfo(dtype).eps / 2 * right.abs() + 8e-6 * hidden.abs().clamp(max=4.75)
            assert ((found - right).abs() <= bound).all()


@pytest.mark.native
@each_simd
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_not_hidden(bad: float, simd: str) -> None:
    block, x = made(16), maps(16, 2, 30, 30)
    x[0, 3, 10, 10] = bad
    found = run_natively(block, x)
    near = found[0, :, 7:14, 7:14]
    assert not near.isfinite().any()
    assert found[1].isfinite().all()
    assert found[0, :, :7].isfinite().all()


# GELU of a NaN whose bits, added to as an exponent, are no signed number any more: rows beyond a tile hold anything.
NAN_PROGRAM = """
#include "native.c"
#include <string.h>

int main(void) {
  const volatile uint32_t bits = 0x7fc0007e;
  const uint32_t read = bits;
  float bad, found[LANES];
  memcpy(&bad, &read, sizeof(bad));
  write_vector(found, gelu_of_float(repeat(bad)));
  return !isnan(found[0]);
}
"""


@pytest.mark.native
@each_simd
def test_exponents_do_not_overflow(simd: str, tmp_path: Path) -> None:
    """Not as signed numbers, which C leaves undefined: this program would be stopped."""
    (tmp_path / "main.c").write_text(NAN_PROGRAM)
    form, compiler = native.VECTOR_FORMS[simd], next(filter(None, map(shutil.which, native.COMPILERS)))
    checks = ("-fsanitize=signed-integer-overflow", "-fsanitize-undefined-trap-on-error")
    command = [compiler, "-O1", "-fopenmp", *checks, *form.flags, *form.definitions(), "-I", str(native.SOURCE.parent)]
    subprocess.run([*command, "-o", str(tmp_path / "main"), str(tmp_path / "main.c"), "-lm"], check=True)
    assert subprocess.run([str(tmp_path / "main")]).returncode == 0


@pytest.mark.native
def test_no_images_and_contiguous_ones() -> None:
    block, x = made(16), maps(16, 2, 9, 9)
    assert torch.equal(run_natively(block, x.contiguous()), run_natively(block, x))
    assert run_natively(block, x[:0]).shape == (0, 16, 9, 9)


@pytest.mark.native
def test_what_it_does_not_take() -> None:
    for block in (made(24), made(16, mlp_ratio=1.5), made(16, kernel_size=13), made(16).double()):
        weights = _weights(block, block.gamma.dtype)
        assert weights is not None
        assert not native.supports_block(weights, torch.float32)
    block, x = made(16), maps(16, 1, 8, 8)
    with autotuner.use(cpu_block="native"):
        (block(x).sum()).backward()  # in training there is no such form, and forcing it is no error
    assert block.gamma.grad is not None


def downsampling(channels: int, outputs: int) -> Downsampling:
    torch.manual_seed(channels)
    layer = Downsampling(channels, outputs)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    return layer


def downsampled(layer: Downsampling, x: Tensor, form: str, dtype: torch.dtype = torch.float32) -> Tensor:
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)
    with torch.no_grad(), autocast, autotuner.use(cpu_downsample=form):
        return layer(x)


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Notes each pass of the compiled downsampling."""
    noted: list[str] = []
    plain = native.run_native_downsample
    monkeypatch.setattr(native, "run_native_downsample", lambda *given: (noted.append("native"), plain(*given))[1])
    return noted


@pytest.mark.native
@pytest.mark.parametrize("threads", [1, 3])
@each_form
@pytest.mark.parametrize("shape", [(2, 8, 8), (1, 33, 57), (3, 2, 3), (1, 2, 500)])
def test_any_map_is_downsampled(
    shape: tuple[int, int, int], simd: str, dtype: torch.dtype, threads: int, packed: list[str]
) -> None:
    layer, x = downsampling(48, 112), maps(48, *shape)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = [downsampled(layer, one, "native", dtype) for one in (x, x.to(dtype))]
    finally:
        torch.set_num_threads(before)
    plain = [downsampled(layer, one, "plain", dtype) for one in (x, x.to(dtype))]
    assert packed == ["native", "native"]
    truth = downsampled(layer.double(), x.double(), "plain")
    for ours, theirs in zip(found, plain, strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.shape == truth.shape
        assert ours.is_contiguous(memory_format=torch.channels_last)
        assert float((ours.double() - truth).norm() / truth.norm()) < BOUNDS[dtype]


def hook(layer: Downsampling) -> None:
    layer[0].register_forward_hook(lambda module, args, out: 2 * out)


def another_stride(layer: Downsampling) -> None:
    layer[1].stride = (1, 1)


def another_norm(layer: Downsampling) -> None:
    layer[0] = nn.BatchNorm2d(48)


@pytest.mark.native
@pytest.mark.parametrize("change", [hook, another_stride, another_norm, nn.Module.bfloat16])
def test_a_changed_downsampling_runs_as_it_is(change: Any, packed: list[str]) -> None:
    layer, x = downsampling(48, 96).eval(), maps(48, 1, 8, 8)
    change(layer)
    x = x.to(layer[1].weight.dtype)
    with torch.no_grad():
        assert torch.equal(downsampled(layer, x, "native"), layer[1](layer[0](x)))
    assert not packed


@pytest.mark.native
def test_a_downsampling_in_training_runs_as_it_is(packed: list[str]) -> None:
    layer, x = downsampling(48, 96), maps(48, 1, 8, 8)
    downsampled(layer, x, "native")
    assert packed.pop()
    with autotuner.use(cpu_downsample="native"):
        layer(x).sum().backward()
        assert layer not in weight_cache.entries, "training needs the memory"
        assert torch.export.export(layer, (x,)) is not None
        with torch.no_grad(), autotuner.without_measuring():
            layer(x)
    assert layer[0].weight.grad is not None
    assert not packed


@pytest.mark.native
@pytest.mark.parametrize("changed", ["0.weight", "0.bias", "1.weight", "1.bias"])
def test_a_downsampling_is_never_stale(changed: str, packed: list[str]) -> None:
    layer, x = downsampling(48, 96), maps(48, 1, 8, 8)
    before = downsampled(layer, x, "native")
    layer.get_parameter(changed).data.mul_(2)
    after = downsampled(layer, x, "native")
    assert len(packed) == 2
    assert not torch.allclose(before, after)
    assert torch.allclose(after, downsampled(layer, x, "plain"), atol=1e-5)


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The library is looked for anew, in an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    native.compiled_library.cache_clear()
    yield tmp_path
    monkeypatch.undo()
    native.compiled_library.cache_clear()


@pytest.mark.native
def test_it_is_compiled_once(anew: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert native.reason_missing() is None
    (kept,) = anew.glob("*/cpu-*.so")
    written = kept.stat().st_mtime_ns
    native.compiled_library.cache_clear()
    assert native.reason_missing() is None
    assert kept.stat().st_mtime_ns == written
    assert sorted(kept.parent.iterdir()) == [kept.with_suffix(".sha256"), kept], "no drafts are left"
    assert kept.stat().st_mode & 0o777 == 0o600
    assert kept.parent.stat().st_mode & 0o777 == 0o700
    kept.chmod(0o666)  # anyone may have written it
    native.compiled_library.cache_clear()
    assert native.reason_missing() is None
    assert not kept.stat().st_mode & 0o022
    monkeypatch.setattr(native, "cpu_info", lambda field: "another processor, the same home")
    native.compiled_library.cache_clear()
    assert native.reason_missing() is None
    assert len(list(anew.glob("*/cpu-*.so"))) == 2


@pytest.mark.native
def test_each_instruction_set_has_a_library_of_its_own(anew: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if simd_name() != "AVX512":
        pytest.skip("one instruction set")
    assert native.reason_missing() is None
    wide = native._library()
    monkeypatch.setattr(native, "simd_name", lambda: "AVX2")
    assert native.reason_missing() is None
    assert native._library() is not wide
    assert len(list(anew.glob("*/cpu-*.so"))) == 2
    assert not hasattr(native._library(), "whole_bfloat16_float32")


# Functions with the results of the trial call, which compile at once.
SMALL = """
typedef long long Sizes;
static void copy(const Sizes *sizes, const float *x, float *out) {
  for (Sizes i = 0; i < sizes[0] * sizes[1] * sizes[2] * sizes[3]; i++) out[i] = x[i];
  /* body */
}
void whole_float32_float32(const void *block, const float *x, float *out, float *all) { copy(block, x, out); }
void before_grn_float32_float32(const void *block, const float *x, float *maps, float *squares, float *all) {}
void after_grn_float32_float32(const void *block, const float *x, float *maps, const float *factors, float *out,
                               float *all) { copy(block, x, out); }
void downsampled_float32_float32(const Sizes *layer, const float *x, float *out, float *all) {
  for (Sizes i = 0; i < layer[0] * layer[1] * layer[2] * layer[3] / 4; i++) out[i] = 1;
}
"""


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another source, for any processor."""
    if shutil.which("gcc") is None:
        pytest.skip("there is no gcc")
    source = tmp_path_factory.mktemp("source") / "small.c"
    source.write_text(SMALL)
    monkeypatch.setattr(native, "SOURCE", source)
    monkeypatch.setattr(native, "FLAGS", ("-shared", "-fPIC"))
    monkeypatch.setattr(native, "simd_name", lambda: "AVX2")
    return source


def cut(kept: Path) -> None:
    os.truncate(kept, 4096)


def overwrite(kept: Path) -> None:
    with kept.open("r+b") as file:
        file.seek(3000)
        file.write(bytes(3000))


def replace_by_a_pipe(kept: Path) -> None:
    kept.unlink()
    os.mkfifo(kept, 0o700)


def replace_by_a_link(kept: Path) -> None:
    kept.rename(kept.with_name("elsewhere"))
    kept.symlink_to("elsewhere")


def take_the_note(kept: Path) -> None:
    kept.with_suffix(".sha256").unlink()


@pytest.mark.parametrize("damage", [cut, overwrite, replace_by_a_pipe, replace_by_a_link, take_the_note])
def test_a_library_that_is_not_what_was_written_is_never_loaded(
    damage: Any, small: Path, anew: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Any] = []
    loaded: list[bytes] = []
    compile_, load = native._compiled, native.load_library
    monkeypatch.setattr(native, "_compiled", lambda *given: (compiled.append(compile_(*given)), compiled[-1])[1])
    monkeypatch.setattr(native, "load_library", lambda content: (loaded.append(content), load(content))[1])
    assert native.reason_missing() is None
    (kept,) = anew.glob("*/cpu-*.so")
    damage(kept)
    for _ in range(2):
        native.compiled_library.cache_clear()
        assert native.reason_missing() is None
    assert len(compiled) == 2, "once at first, once after the damage"
    assert loaded == [compiled[0], compiled[1], compiled[1]]
    assert kept.read_bytes() == compiled[1]
    assert not kept.is_symlink()


def test_a_cache_that_others_may_write_to_is_not_used(small: Path, anew: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert native.reason_missing() is None
    (kept,) = anew.glob("*/cpu-*.so")
    written = kept.stat().st_mtime_ns
    kept.parent.chmod(0o777)
    native.compiled_library.cache_clear()
    with pytest.warns(UserWarning, match="is not used, others may write to it: chmod go-w"):
        assert native.reason_missing() is None
    assert kept.stat().st_mtime_ns == written
    kept.parent.chmod(0o755)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    native.compiled_library.cache_clear()
    with pytest.warns(UserWarning, match="is not used, it belongs to another user"):
        assert native.reason_missing() is None
    assert kept.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("body", "reason", "seconds"),
    [
        ("*(volatile int *)0 = 0;", "crashes in a trial call (signal 11)", PATIENCE),
        ("__builtin_trap();", "crashes in a trial call (signal 4)", PATIENCE),
        ("for (volatile int i = 0;; i++);", "hangs in a trial call (1 s)", 1),
        ("out[0] = 2;", "computes a wrong result in a trial call", PATIENCE),
    ],
)
def test_a_library_that_crashes_is_never_loaded(
    body: str, reason: str, seconds: int, small: Path, anew: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.write_text(small.read_text().replace("/* body */", body))
    monkeypatch.setattr(library, "LIBRARY_TRIAL_SECONDS", seconds)
    assert native.reason_missing() == f"small.c as {shutil.which('gcc')} compiles it {reason}"
    assert not list(anew.rglob("*"))


def test_a_library_without_the_functions_is_never_loaded(small: Path, anew: Path) -> None:
    small.write_text("int nothing;")
    assert "undefined symbol: whole_float32_float32" in str(native.reason_missing())
    assert not list(anew.rglob("*"))


@pytest.mark.native
def test_a_home_that_cannot_be_written_to(anew: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (anew / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(anew / "file"))
    assert native.reason_missing() is None


def test_without_a_compiler_the_others_do_it(anew: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "simd_name", lambda: "AVX2")
    monkeypatch.setenv("PATH", str(anew))
    assert "no C compiler (gcc, cc, clang, or CC) is found" in str(native.reason_missing())
    block, x = made(16), maps(16, 1, 8, 8)
    weights = _weights(block, torch.float32)
    assert weights is not None
    assert not native.supports_block(weights, torch.float32)
    assert list(_candidates(block, x, torch.float32, weights, native_forms=[])) == ["fused", "plain"]
    with pytest.raises(MachineError, match="cpu_block=native is not available here: no C compiler"):
        run_natively(block, x)


@pytest.mark.parametrize("compiler", ["false", "no-such-compiler"])
def test_a_compiler_that_fails(compiler: str, anew: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "simd_name", lambda: "AVX2")
    monkeypatch.setenv("CC", compiler)
    assert compiler in str(native.reason_missing())
    assert not list(anew.rglob("*.so")) + list(anew.rglob(f"*.{os.getpid()}"))


def test_another_processor(anew: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "simd_name", lambda: "DEFAULT")
    assert native.reason_missing() == "the processor has none of AVX512, AVX2, NEON"
