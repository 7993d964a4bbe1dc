"""A page with what a network gets of a config's data, before it is trained: :func:`analysis.browse.page.browse`."""

from analysis.browse.page import browse, browse_command

__all__ = ["browse", "browse_command"]
