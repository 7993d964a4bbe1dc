"""Measuring: ours beside others, in turns."""
