"""The demo of ``tools/demo.sh``: one backbone in three tasks on real handwriting, with nothing to download.

Data (`drawing`, `formats`, `dataset`), what to train (`steps`), running and resuming it (`process`), how long it takes
(`pace`), and the report of the results (`report`).
"""

from convnext_dense import refuse_namesakes

refuse_namesakes("backbones", "engine")
