"""Losses and gradients that are not finite: noticed, written down, reproduced."""
