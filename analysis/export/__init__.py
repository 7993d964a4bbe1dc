"""Export of trained networks to safetensors, timm, ONNX and torch.export.

A source is built from a name or a config, written in a format, read back, and kept if its outputs agree.
"""

from analysis.export.exporter import ExportResult, check_export, export_network
from analysis.export.formats import EXPORT_FORMATS, ExportFormat
from analysis.export.source import ExportSource, source_from_config, source_from_name

__all__ = [
    "EXPORT_FORMATS",
    "ExportFormat",
    "ExportResult",
    "ExportSource",
    "check_export",
    "export_network",
    "source_from_config",
    "source_from_name",
]
