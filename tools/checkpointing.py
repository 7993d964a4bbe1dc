"""Became ``python tools/benchmark.py checkpointing ...``: prints the new command line."""

from benchmark import print_new_command

print_new_command("checkpointing")
