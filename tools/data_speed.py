"""Became ``python tools/benchmark.py loading ...``: prints the new command line."""

from benchmark import print_new_command

print_new_command("loading")
