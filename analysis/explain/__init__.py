"""What a trained network looks at, on one page: class activation maps, feature maps, embeddings, feature collapse.

``network`` holds it with the preprocessing of its tests; ``cams``, ``feature_maps``, ``embeddings`` and ``collapse``
are the parts of the page; ``page`` writes it. Scores of classes are the task's (``TaskSpec.explain``).
"""

from analysis.explain.page import PARTS, ExplainOptions, explain

__all__ = ["PARTS", "ExplainOptions", "explain"]
