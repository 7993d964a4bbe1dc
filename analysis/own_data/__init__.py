"""A config for data of one's own: what a folder holds, and the task's example filled in with it.

`splits` says what is for training, validation and test; `class_folders`, `coco_files` and `label_images` look at the
data of a task; `config_file` writes what they find into the task's file of `configs/examples/`.
"""

from analysis.own_data.config_file import new_config
from analysis.own_data.splits import Request

__all__ = ["Request", "new_config"]
