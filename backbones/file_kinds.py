"""What a file is that was given for weights or for an image and is neither, and whether an image is complete."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from pathlib import Path

SIGNATURE_BYTES = 512  # enough for all signatures
_PPM_HEADER = re.compile(rb"P([56])(?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)\s")

# Signature, a regular expression of the file's first bytes -> what the file is, and what to do.
_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (
        rb"version https://git-lfs\.github\.com",
        "is a Git LFS pointer, not the file it stands for: fetch that with 'git lfs pull'",
    ),
    (rb"(?:\xef\xbb\xbf)?\s*(?i:<!doctype html|<html|<head)", "is a web page (HTML): the download failed, repeat it"),
    (rb"(?:\xef\xbb\xbf)?\s*<(?i:svg)\b", "is an SVG drawing, not pixels: export it as PNG"),
    (rb"(?:\xef\xbb\xbf)?\s*<\?xml", "is an XML document: the download failed, or it is a drawing or annotations"),
    (
        rb"\x89HDF\r\n\x1a\n",
        "is an HDF5 file (Keras, MATLAB): convert it with the program that wrote it",
    ),
    (
        # ModelProto: field 1, ir_version; then field 2, producer_name, or 7, graph (onnx.proto).
        rb"\x08[\x01-\x20](?:\x12[\x00-\x40][\x20-\x7e]|\x3a|\x42)",
        "is an ONNX model, which is a program: take the PyTorch weights from which it was exported",
    ),
    (rb"....TFL3", "is a TensorFlow Lite model: take the PyTorch weights of the network"),
    (rb"GGUF", "is a GGUF file of llama.cpp: take the PyTorch weights of the network"),
    (rb"\x93NUMPY", "is a NumPy array (.npy): images in arrays are read where the pipeline's reader states channels"),
    (
        rb"II[*+]\0|MM\0[*+]",
        "is a TIFF of 32-bit pixels or many bands (set model.backbone.in_channels to their number), or a damaged one",
    ),
    (rb"\x1f\x8b|BZh[1-9]|\xfd7zXZ\0|\x28\xb5\x2f\xfd|7z\xbc\xaf\x27\x1c|Rar!", "is a compressed file: unpack it"),
    (rb"%PDF-", "is a PDF document"),
    (rb"8BPS", "is a Photoshop file: export it as PNG"),
    (rb"....ftyp(?:hei[cfmsx]|hev[cx]|mif1|msf1|avi[fs])", "is a HEIC or AVIF image: convert it to JPEG or PNG"),
    (rb"....ftyp", "is a video (MP4, MOV): extract its frames"),
    (rb"\x1aE\xdf\xa3|RIFF....AVI ", "is a video (Matroska, WebM, AVI): extract its frames"),
    (rb".{128}DICM", "is a DICOM image: convert it to PNG or TIFF with the contrast it should have"),
    (rb".{257}ustar", "is a tar archive: unpack it"),
)


def describe_content(head: bytes) -> str | None:
    """Say what a file is by its first bytes.

    Args:
        head: First :data:`SIGNATURE_BYTES` of the file, or all of it.

    Returns:
        The rest of a sentence that starts with the file; ``None`` for a file of no known foreign kind.
    """
    return next((text for pattern, text in _SIGNATURES if re.match(pattern, head, re.DOTALL)), None)


def describe_weight_file(path: Path) -> str | None:
    """Say what a file is that holds no weights of PyTorch, see :func:`describe_content`."""
    with path.open("rb") as file:
        text = describe_content(file.read(SIGNATURE_BYTES))
    if text is not None or not zipfile.is_zipfile(path):
        return text
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if names and all(name.endswith(".npy") for name in names):
        return "is an archive of NumPy arrays (.npz): save them as tensors with torch.save"
    if "model.weights.h5" in names:
        return "is a Keras model: take the PyTorch weights of the network"
    inside = [name for name in names if name.endswith((".pth", ".pt", ".bin", ".ckpt", ".safetensors", ".tar"))]
    return f"is an archive of files ({inside[0]}): unpack it" if inside else None


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript program: an archive that has code beside its tensors."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.count("/") == 1 and name.endswith("/constants.pkl") for name in archive.namelist())


def truncation(head: bytes, tail: bytes, size: int, read_all: Callable[[], bytes]) -> str | None:
    """Whether a file ends before its picture does, as far as that shows without decoding.

    Args:
        head: First bytes of the file.
        tail: Last bytes of the file.
        size: Length of the file in bytes.
        read_all: Returns the whole file; called for the few files without an end marker in the last bytes.

    Returns:
        Description of the truncation, or ``None`` if there is none.
    """
    if head.startswith(b"\xff\xd8"):
        # Cameras and disks add zeros after the end marker; a marker elsewhere is searched in the whole file.
        ended = tail.rstrip(b"\0").endswith(b"\xff\xd9") or _jpeg_ends(read_all())
        return None if ended else f"is cut off after {size:,} bytes: the end marker of a JPEG is absent"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        ended = b"IEND\xaeB`\x82" in tail or b"IEND\xaeB`\x82" in read_all()
        return None if ended else f"is cut off after {size:,} bytes: the end chunk of a PNG is absent"
    if head.startswith((b"GIF87a", b"GIF89a")):
        ended = tail.rstrip(b"\0").endswith(b"\0;")
        return None if ended else f"is cut off after {size:,} bytes: the end marker of a GIF is absent"
    expected = _stated_length(head)
    return f"is cut off: {size:,} of {expected:,} bytes" if expected > size else None


def _jpeg_ends(content: bytes) -> bool:
    """Whether the end marker follows the first scan; a thumbnail before the scan has an end marker of its own."""
    place = 2
    while content[place : place + 1] == b"\xff":
        marker = content[place + 1 : place + 2]
        if marker == b"\xff":
            place += 1
            continue
        if marker == b"\xda":
            return content.find(b"\xff\xd9", place) >= 0
        place += 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    return False


def _stated_length(head: bytes) -> int:
    """Length in bytes that the header of a WebP, BMP or PPM file states, 0 for other formats."""
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return int.from_bytes(head[4:8], "little") + 8
    if head.startswith(b"BM") and len(head) >= 34 and int.from_bytes(head[30:34], "little") == 0:
        width, height = (int.from_bytes(head[at : at + 4], "little", signed=True) for at in (18, 22))
        bits = int.from_bytes(head[28:30], "little")
        return int.from_bytes(head[10:14], "little") + abs(height) * ((abs(width) * bits + 31) // 32 * 4)
    if match := _PPM_HEADER.match(head):
        width, height, max_value = (int(match[i]) for i in (2, 3, 4))
        return match.end() + width * height * (3 if match[1] == b"6" else 1) * (2 if max_value > 255 else 1)
    return 0
