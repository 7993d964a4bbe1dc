"""A classifier, a detector and a segmentor on real handwriting: data, steps and report of ``tools/demo.sh``."""
