"""What a file is that was given for weights or for an image and is neither, told by its first bytes."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

SIGNATURE_BYTES = 512  # enough for all signatures

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
    (rb"\x93NUMPY", "is a NumPy array (.npy)"),
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
