"""The paper's tables as data, and the same numbers counted from our networks.

:mod:`~analysis.paper.printed` holds what is printed, :mod:`~analysis.paper.compare` counts and compares parameters and
FLOPs, :mod:`~analysis.paper.architectures` reads the layers of Table 2.9 from the built networks.
"""

from analysis.paper.architectures import stage_layers
from analysis.paper.compare import compare_table, table_as_dict, table_as_text
from analysis.paper.printed import TABLES, PaperRow, PaperTable

__all__ = ["TABLES", "PaperRow", "PaperTable", "compare_table", "stage_layers", "table_as_dict", "table_as_text"]
