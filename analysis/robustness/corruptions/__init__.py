"""The corruptions of ImageNet-C and ImageNet-C-bar, made on images of one's own.

Every function takes a uint8 RGB image of any size and random numbers of its own, so that the result depends on the
image, the name, the severity and the seed alone, in any process and on any machine. The bytes differ from the
released sets, which were saved as JPEG and drew other random numbers: scores on them are "regenerated".
"""

from analysis.robustness.corruptions.table import (
    BAR_CORRUPTIONS,
    CORRUPTIONS,
    DENSE_CORRUPTIONS,
    EXTRA_CORRUPTIONS,
    check_corruption,
    corrupt,
    image_seed,
)

__all__ = [
    "BAR_CORRUPTIONS",
    "CORRUPTIONS",
    "DENSE_CORRUPTIONS",
    "EXTRA_CORRUPTIONS",
    "check_corruption",
    "corrupt",
    "image_seed",
]
