"""Weights out in other formats, each file run beside its source before it is kept."""
