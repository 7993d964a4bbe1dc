"""Packages that are absent: which one an error is about, and how to install it."""

from __future__ import annotations

import re
import sys
from importlib.util import find_spec

from backbones.errors import MachineError

# Import name -> what to install, where that is another name.
INSTALL_NAMES = {
    "cityscapesscripts": "cityscapesScripts",
    # opencv-python puts its files over these; uninstalled, it takes them away, and the name of this one stays listed.
    "cv2": "--force-reinstall --no-deps 'opencv-python-headless<4.13'",
    "distutils": "setuptools",
    "git": "gitpython",
    "google": "protobuf",
    "lap": "lapx",
    "osgeo": "gdal",
    "panopticapi": "git+https://github.com/cocodataset/panopticapi.git",
    "PIL": "pillow",
    "pkg_resources": "'setuptools<82'",  # the last ones that have it
    "pynvml": "nvidia-ml-py",
    "pytorch_grad_cam": "grad-cam",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "turbojpeg": "PyTurboJPEG",
    "umap": "umap-learn",
    "yaml": "pyyaml",
}
# Packages of this project's extras in pyproject.toml; those of its dependencies come with ``pip install -e .``.
EXTRAS = {"export": ("onnx", "onnxruntime", "onnxscript")}
# Loggers of mmengine import their package when they begin to write: backends of visualizers -> packages.
LOGGER_PACKAGES = {
    "AimVisBackend": ("aim",),
    "ClearMLVisBackend": ("clearml",),
    "DVCLiveVisBackend": ("dvclive", "pygit2"),
    "MLflowVisBackend": ("mlflow",),
    "NeptuneVisBackend": ("neptune",),
    "TensorboardVisBackend": ("tensorboard",),
    "WandbVisBackend": ("wandb",),
}
# Values of ``imdecode_backend`` of mmcv's loading steps, imported when the first image is read -> package.
DECODER_PACKAGES = {"tifffile": "tifffile", "turbojpeg": "turbojpeg"}
_NOT_INSTALLED = re.compile(r"^(?:Package )?[`'\"]?(\w+)[`'\"]? is not installed")  # as mmcv and mmdet say it


def install_command(package: str) -> str:
    """The command that installs a package.

    Args:
        package: Name by which it is imported.
    """
    for extra, packages in EXTRAS.items():
        if package in packages:
            return f"pip install -e '.[{extra}]'"
    return f"pip install {INSTALL_NAMES.get(package, package)}"


def is_absent(package: str) -> bool:
    """Whether a package can be installed: it is not there, and is not one of Python's own modules.

    Args:
        package: Name by which it is imported, without submodules.
    """
    if package in sys.stdlib_module_names:
        return False
    try:
        return sys.modules.get(package) is None and find_spec(package) is None
    except ValueError:  # a module that was made without a specification: it is there
        return False


def missing_package(error: BaseException | None) -> str | None:
    """Import name of the package whose absence led to an error, with advice of the library's own or without.

    Args:
        error: Error, with those that led to it.

    Returns:
        The name, also that of OpenCV if it cannot be loaded, as its GUI build without libGL; ``None`` if the error has
        another cause, such as a module that an installed package lacks.
    """
    while isinstance(error, ImportError | RuntimeError):
        if isinstance(error, ImportError) and error.name == "cv2":
            return "cv2"
        said = _NOT_INSTALLED.match(str(error))
        name = error.name if isinstance(error, ModuleNotFoundError) else said and said[1]
        if name:
            package = name.partition(".")[0]
            return package if is_absent(package) else None
        error = error.__cause__ or error.__context__
    return None


def missing_package_error(package: str, place: str = "") -> MachineError:
    """The error about an absent package.

    Args:
        package: Name by which it is imported.
        place: Part that asks for it, such as a dotted key of a config.
    """
    where, state = f"{place}: " if place else "", "is missing" if is_absent(package) else "cannot be loaded"
    return MachineError(f"{where}package {package!r} {state}: {install_command(package)}, or remove what asks for it")
