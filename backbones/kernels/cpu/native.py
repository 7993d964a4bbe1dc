"""Inference on CPU in one pass for each layer, by C code that is compiled on first use where there is a C compiler.

PyTorch's operators run one after another over a map or a piece of it: at 224 pixels and 8 images the first stage's
hidden map alone is 19 MB in bfloat16, written once and read once in each block, and its products have so few channels
that oneDNN waits for that memory half of the time. Here one thread takes about a hundred positions through all steps,
convolution, norm, both products, GELU and residual, while they stay in its own cache (``native.c``). With response
normalisation (V2), which needs whole images between the products, there are two such passes. Norm and convolution
between two stages are one pass as well.

It needs AVX-512, AVX2 with FMA, or NEON (whose arithmetic has run in an emulator alone), for bfloat16 AVX512_BF16,
channels in multiples of a vector and parameters in float32. The source is the same for all, with the width of its
vectors as a parameter (:class:`VectorForm`). Nothing has to be compiled to install or to use this package: without a
compiler :mod:`backbones.kernels.cpu.autograd` does the same. The library is cached beside the file of selections
(:mod:`backbones.kernels.autotune`); its name is a digest of its source, the compiler's command and the processor's
instruction set. Its size and digest lie beside it, written once a child process has called its functions; without them,
or where another user may have written, it is compiled again.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
import shlex
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from backbones.files import COMPILATION_PREFIX, held_folder
from backbones.kernels.autotune import cache_file, read_cached, write_cached
from backbones.kernels.cpu import autograd
from backbones.kernels.cpu.autograd import Products, Weights, even_slices
from backbones.kernels.cpu.dispatch import cpu_info, simd_name
from backbones.kernels.cpu.library import BlockStruct, DownsampleStruct, failed_trial, load_library
from backbones.layers import GRN

SOURCE = Path(__file__).with_suffix(".c")
FLAGS = ("-O3", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC")
COMPILERS = ("gcc", "cc", "clang")
COMPILE_TIMEOUT_SECONDS = 120
MAX_ROWS = 12  # constant of the source: rows of a product that are computed at a time
NATIVE_KERNEL_SIZES = (3, 5, 7, 9, 11)
# Positions of a tile: with 56 the weights are read too often, with 224 a wide block's hidden values leave the cache.
TILE_POSITIONS = 112
# For bfloat16, polynomials around so many points from 0 to the last one give the tail of the normal distribution.
TAIL_POINTS, LAST_TAIL_POINT = 32, 4.75


class VectorForm(NamedTuple):
    """What the C code is compiled for.

    Attributes:
        flags: Flags of the compiler.
        lanes: Values of float32 in a vector.
        columns: Columns of the convolution that are computed at a time.
        max_vectors: Most vectors in a panel of a product's weight.
    """

    flags: tuple[str, ...]
    lanes: int
    columns: int
    max_vectors: int

    def definitions(self) -> tuple[str, ...]:
        """The numbers as flags of the compiler."""
        named = {"LANES": self.lanes, "COLUMNS": self.columns, "MAX_VECTORS": self.max_vectors}
        return tuple(f"-D{name}={value}" for name, value in named.items())


# AVX2 has 16 registers, the others 32. Its form is compiled without the instructions of AVX-512, also where they are.
VECTOR_FORMS = {
    "AVX512": VectorForm(("-march=native",), 16, 14, 4),
    "AVX2": VectorForm(("-march=native", "-mno-avx512f"), 8, 7, 2),
    "NEON": VectorForm((), 4, 14, 4),
}


class PackedBlock(NamedTuple):
    """A block's weights as the C code reads them.

    Attributes:
        conv: Weight of the convolution, ``(side, side, C)``.
        conv_bias: ``(C,)``.
        scale: Weight of the norm, ``(C,)``.
        shift: Bias of the norm, ``(C,)``.
        first: Panels of the first product's weight, in its precision.
        first_bias: ``(hidden,)``.
        second: Panels of the second product's weight, with layer scale multiplied in.
        second_bias: ``(C,)``, with layer scale, and with the product of the response normalisation's shift added.
    """

    conv: Tensor
    conv_bias: Tensor
    scale: Tensor
    shift: Tensor
    first: Tensor
    first_bias: Tensor
    second: Tensor
    second_bias: Tensor


class DownsampleWeights(NamedTuple):
    """Weights of a norm and a convolution of kernel size and stride 2: the parameters, or as the C code reads them.

    Attributes:
        scale: Weight of the norm, ``(C,)``.
        shift: Bias of the norm, ``(C,)``.
        weight: Weight of the convolution, ``(outputs, C, 2, 2)``; for the C code panels of it, taken as a product with
            patches ``(2, 2, C)``, in its precision.
        bias: Bias of the convolution, ``(outputs,)``.
    """

    scale: Tensor
    shift: Tensor
    weight: Tensor
    bias: Tensor


def reason_missing() -> str | None:
    """Why the C code cannot run on this machine; ``None`` if it can."""
    found = _library()
    return found if isinstance(found, str) else None


def supports_block(weights: Weights, dtype: torch.dtype) -> bool:
    """Whether a block with these weights can run, with products in the precision ``dtype``."""
    precise = all(one is None or one.dtype == torch.float32 for one in weights)
    return precise and weights.conv.shape[-1] in NATIVE_KERNEL_SIZES and has_product(weights.first, dtype)


def has_product(weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether the C code has products with a weight ``(N, K, ...)`` in the precision ``dtype``."""
    fits = hasattr(_library(), f"whole_{_name(dtype)}_float32")
    return fits and not any(size % _vector_form().lanes for size in weight.shape[:2])


def pack_block(weights: Weights, dtype: torch.dtype) -> PackedBlock:
    """The weights of a block for products in the precision ``dtype``."""
    products = Products.of(weights, torch.float32)
    bias = products.second_bias
    if weights.grn_beta is not None:
        bias = bias + products.second @ weights.grn_beta.detach().flatten()
    found = PackedBlock(
        products.conv.flatten(1).t(),
        products.conv_bias,
        weights.scale.detach(),
        weights.shift.detach(),
        _panels(products.first, dtype),
        products.first_bias,
        _panels(products.second, dtype),
        bias,
    )
    return PackedBlock(*(one.contiguous() for one in found))


def pack_downsample(parameters: DownsampleWeights, dtype: torch.dtype) -> DownsampleWeights:
    """The parameters for products in precision ``dtype``."""
    panels = _panels(parameters.weight.detach().permute(0, 2, 3, 1).flatten(1), dtype)
    return DownsampleWeights(*(one.detach().contiguous() for one in parameters._replace(weight=panels)))


def run_native_downsample(x: Tensor, packed: DownsampleWeights, eps: float) -> Tensor:
    """Layer normalisation and a convolution of kernel size and stride 2.

    Args:
        x: Input, ``(N, H, W, C)``, contiguous, in float32 or in the precision of the products.
        packed: Weights from :func:`pack_downsample`.
        eps: Epsilon of the norm.

    Returns:
        ``(N, H // 2, W // 2, outputs)`` in the precision of the products.
    """
    images, height, width, channels = x.shape
    outputs, threads, dtype = len(packed.bias), torch.get_num_threads(), packed.weight.dtype
    out = torch.empty(images, height // 2, width // 2, outputs, dtype=dtype)
    if not out.numel():
        return out
    tile = _tile(out.shape[:3].numel(), out.shape[:3].numel(), 1, threads)
    words = (tile + MAX_ROWS) * 4 * channels * packed.weight.element_size() // 4
    pointers = (one.data_ptr() for one in packed)
    layer = DownsampleStruct(*x.shape, outputs, tile, threads, words, eps, *pointers)
    _call("downsampled", dtype, layer, x, out, torch.empty(threads * words))
    return out


def run_native_block(x: Tensor, packed: PackedBlock, eps: float, grn: GRN | None) -> Tensor:
    """Output of a block.

    Args:
        x: Input, ``(N, H, W, C)``, contiguous, in float32 or in the precision of the products.
        packed: Weights from :func:`pack_block`, in the precision of the products.
        eps: Epsilon of the norm.
        grn: Response normalisation, if the block has one.

    Returns:
        ``(N, H, W, C)`` in the precision of ``x``.
    """
    out = torch.empty_like(x)
    if not x.numel():
        return out
    if grn is None:
        block, scratch = _describe(x, packed, eps, x.shape[:3].numel())
        _call("whole", packed.first.dtype, block, x, out, scratch)
        return out
    hidden = len(packed.first_bias)
    image = x.shape[1:3].numel() * hidden * packed.first.element_size()
    for images in even_slices(len(x), autograd.MAX_PIECE_BYTES // image):
        block, scratch = _describe(x[images], packed, eps, x.shape[1:3].numel())
        maps = torch.empty(block.images, *x.shape[1:3], hidden, dtype=packed.first.dtype)
        squares = torch.empty(block.images, -(-block.span // block.tile), hidden)
        _call("before_grn", packed.first.dtype, block, x[images], maps, squares, scratch)
        factors = grn.factors(squares.sum(1)[:, None, None].sqrt())
        _call("after_grn", packed.first.dtype, block, x[images], maps, factors, out[images], scratch)
    return out


def _call(step: str, dtype: torch.dtype, layer: BlockStruct | DownsampleStruct, x: Tensor, *others: Tensor) -> None:
    """Call a function of the library, which releases the GIL meanwhile."""
    function = getattr(_library(), f"{step}_{_name(dtype)}_{_name(x.dtype)}")
    function(ctypes.byref(layer), *(ctypes.c_void_p(one.data_ptr()) for one in (x, *others)))


def _describe(x: Tensor, packed: PackedBlock, eps: float, span: int) -> tuple[BlockStruct, Tensor]:
    """The C struct of a block on a map ``(N, H, W, C)``, and its scratch memory."""
    channels, hidden, threads = x.shape[3], len(packed.first_bias), torch.get_num_threads()
    tile = _tile(x.shape[:3].numel(), span, x.shape[2], threads)
    rows = (tile + MAX_ROWS) * (channels + hidden) * packed.first.element_size() // 4
    form = _vector_form()
    words = (min(tile, x.shape[2]) + form.columns) * channels + rows
    words += -words % form.lanes
    side = round(packed.conv.shape[0] ** 0.5)
    pointers = (one.data_ptr() for one in (*packed, _tail()))
    return BlockStruct(*x.shape, hidden, side, span, tile, threads, words, eps, *pointers), torch.empty(threads * words)


def _tile(positions: int, span: int, width: int, threads: int) -> int:
    """Positions of a tile, such that every thread gets the same number of tiles; whole rows where these are short."""
    tiles = -(-positions // TILE_POSITIONS)
    tile = min(-(-positions // (tiles + -tiles % threads)), span)
    if width <= tile:
        return round(tile / width) * width
    columns = _vector_form().columns
    return -(-width // -(-width // tile) // columns) * columns


def _panels(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight ``(N, K)`` in panels of up to ``max_vectors`` vectors of its rows, ``(K words, rows of a panel)`` each.

    A word is one value of float32, or two adjacent values of bfloat16 in a row.
    """
    weight = weight.to(dtype)
    pair = 4 // weight.element_size()
    _, lanes, _, max_vectors = _vector_form()
    panels = even_slices(len(weight) // lanes, max_vectors)
    parts = (weight[rows.start * lanes : rows.stop * lanes] for rows in panels)
    return torch.cat([part.unflatten(1, (-1, pair)).transpose(0, 1).flatten() for part in parts])


@cache
def _tail() -> Tensor:
    """Polynomials ``(3, TAIL_POINTS)`` of Phi(-a), lowest power first, exact at three Chebyshev nodes around a point.

    The argument is the distance from the point, in units of the distance between two points.
    """
    place = math.sqrt(3) / 4
    points = torch.arange(TAIL_POINTS, dtype=torch.float64)
    before, at, after = (
        torch.special.ndtr(-(points + f) * LAST_TAIL_POINT / (TAIL_POINTS - 1)) for f in (-place, 0, place)
    )
    return torch.stack([at, (after - before) / (2 * place), (after + before - 2 * at) / (2 * place**2)]).float()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _vector_form() -> VectorForm:
    return VECTOR_FORMS[simd_name()]


def _library() -> ctypes.CDLL | str:
    """The compiled library, or the reason why there is none."""
    return compiled_library(simd_name())


@cache
def compiled_library(simd: str) -> ctypes.CDLL | str:
    """The library for an instruction set, or the reason why there is none."""
    if (form := VECTOR_FORMS.get(simd)) is None:
        return f"the processor has none of {', '.join(VECTOR_FORMS)}"
    compiler = os.environ.get("CC") or next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        return f"no C compiler ({', '.join(COMPILERS)}, or CC) is found"
    command = [*shlex.split(compiler), *FLAGS, *form.flags, *form.definitions()]
    # -march=native compiles for the processor's instructions, and homes are shared between machines.
    digest = hashlib.sha256("\0".join([*command, cpu_info("flags")]).encode() + SOURCE.read_bytes()).hexdigest()
    library = cache_file().parent / f"cpu-{digest[:16]}.so"
    try:
        content = _cached(library) or _compiled(command, library)
        return content if isinstance(content, str) else load_library(content)
    except subprocess.SubprocessError as error:
        return f"{compiler} does not compile {SOURCE.name}: {error}"
    except OSError as error:  # no such compiler, or a machine on which nothing can be loaded
        return f"{SOURCE.name} cannot be compiled and loaded: {error}"


def _cached(library: Path) -> bytes | None:
    """The library as it was written by this user; ``None`` if it is absent, damaged, or anyone may have changed it."""
    content, note = read_cached(library), read_cached(_note_of(library))
    return content if content is not None and note == _note(content) else None


def _compiled(command: list[str], library: Path) -> bytes | str:
    """The library, compiled, tried and written to the cache where that is possible; or why it is not to be used."""
    with held_folder(COMPILATION_PREFIX) as folder:
        draft, place = folder / "cpu.so", os.environ | {"TMPDIR": str(folder)}  # the compiler's own files too
        run = [*command, "-o", str(draft), str(SOURCE)]
        subprocess.run(run, check=True, capture_output=True, timeout=COMPILE_TIMEOUT_SECONDS, env=place)
        content = draft.read_bytes()
    if failure := failed_trial(content):
        return f"{SOURCE.name} as {command[0]} compiles it {failure}"
    write_cached((library, content), (_note_of(library), _note(content)))  # the note last: all is well
    return content


def _note_of(library: Path) -> Path:
    return library.with_suffix(".sha256")


def _note(content: bytes) -> bytes:
    """Size and digest of a library, which lie beside it."""
    return f"{len(content)} {hashlib.sha256(content).hexdigest()}\n".encode()
