"""Before a run: is the data where the config says?"""

from __future__ import annotations

from pathlib import Path

from mmengine.config import Config, ConfigDict

from backbones.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")
HOW = "see 'Bring your data' in README.md, or point data_root elsewhere with --cfg-options data_root=FOLDER"


def check_data_folders(cfg: Config, splits: tuple[str, ...]) -> None:
    """Look for every file and folder that the data sets of some splits read.

    Args:
        cfg: A resolved config.
        splits: Any of ``train``, ``val``, ``test``.

    Raises:
        UserError: If one is absent, with the place and the way to get it.
    """
    for split in splits:
        loader = cfg.get(f"{split}_dataloader")
        if not loader:
            continue
        for path in data_paths(loader.dataset):
            if not path.exists():
                raise UserError(f"{split} data: {str(path)!r} does not exist (looked from {str(Path.cwd())!r}); {HOW}")


def data_paths(dataset: ConfigDict) -> list[Path]:
    """Files and folders that a data set reads."""
    root = Path(dataset.get("data_root") or ".")
    parts = [dataset.get("split"), dataset.get("ann_file"), *dataset.get("data_prefix", {}).values()]
    return [root, *(root / part for part in parts if part)]
