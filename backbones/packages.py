"""Packages that are absent: which one an error is about, and how to install it."""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from backbones.errors import MachineError

# Import name -> what to install, where that is another name.
INSTALL_NAMES = {
    "COCOEvalCap": "pycocoevalcap",  # the name that mmdet gives it
    "cityscapesscripts": "cityscapesScripts",
    # opencv-python puts its files over these; uninstalled, it takes them away, and the name of this one stays listed.
    "cv2": "--force-reinstall --no-deps 'opencv-python-headless<4.13'",
    "distutils": "setuptools",
    "git": "gitpython",
    "google": "protobuf",
    "lap": "lapx",
    "lion_pytorch": "lion-pytorch",
    "mmpretrain": "onedl-mmpretrain",
    "osgeo": "gdal",
    "panopticapi": "git+https://github.com/cocodataset/panopticapi.git",
    "PIL": "pillow",
    "pkg_resources": "'setuptools<82'",  # the last ones that have it
    "pynvml": "nvidia-ml-py",
    "Sophia": "Sophia-Optimizer",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "trackeval": "git+https://github.com/JonathonLuiten/TrackEval.git",
    "turbojpeg": "PyTurboJPEG",
    "umap": "umap-learn",
    "yaml": "pyyaml",
}
# Packages of this project's extras in pyproject.toml; those of its dependencies come with ``pip install -e .``.
EXTRAS = {
    "explain": ("pytorch_grad_cam",),
    "export": ("onnx", "onnxruntime", "onnxscript"),
    "shards": ("pyarrow",),
    "stores": ("aiohttp", "fsspec"),
    "trackers": ("mlflow", "wandb"),
}
# Loggers import their package when they begin to write: backends of visualizers -> packages.
LOGGER_PACKAGES = {
    "AimVisBackend": ("aim",),
    "ClearMLVisBackend": ("clearml",),
    "DVCLiveVisBackend": ("dvclive", "pygit2"),
    "MLflowVisBackend": ("mlflow",),
    "MlflowTracker": ("mlflow",),
    "NeptuneVisBackend": ("neptune",),
    "TensorboardVisBackend": ("tensorboard",),
    "WandbTracker": ("wandb",),
    "WandbVisBackend": ("wandb",),
}
# Values of ``imdecode_backend`` of mmcv's loading steps, imported when the first image is read -> package.
DECODER_PACKAGES = {"tifffile": "tifffile", "turbojpeg": "turbojpeg"}
# mmengine registers these optimizers only where their package is installed (mmengine/optim/optimizer/builder.py and
# mmengine/_strategy/deepspeed.py): package -> names. Those of bitsandbytes that torch has too get a prefix.
OPTIMIZER_PACKAGES = {
    "lion_pytorch": ("Lion",),
    "dadaptation": ("DAdaptAdaGrad", "DAdaptAdam", "DAdaptSGD"),
    "Sophia": ("DecoupledSophia", "Sophia", "Sophia2", "SophiaG"),
    "transformers": ("Adafactor",),
    "deepspeed": ("DeepSpeedCPUAdam", "FusedAdam", "FusedLamb", "OnebitAdam", "OnebitLamb", "ZeroOneAdam"),
    "bitsandbytes": (
        *(f"bnb_{name}" for name in ("Adagrad", "Adam", "AdamW", "RMSprop", "SGD")),
        *(f"{name}{bits}bit" for name in ("Adagrad", "RMSprop", "SGD", "LAMB", "LARS") for bits in (8, 32)),
        *(f"{name}{bits}bit" for name in ("Adam", "AdamW", "Lion", "AdEMAMix") for bits in (8, 32)),
        *(f"Paged{name}{bits}" for name in ("Adam", "AdamW", "Lion", "AdEMAMix") for bits in ("", "8bit", "32bit")),
        *("AdEMAMix", "LAMB", "LARS", "PytorchLARS"),
    ),
}
# Scopes of other libraries in a ``type``, as in mmdet's and mmseg's configs of ConvNeXt, which are their packages.
SCOPE_PACKAGES = ("mmpretrain",)
_NOT_INSTALLED = re.compile(r"^(?:Package )?[`'\"]?(\w+)[`'\"]? is not installed")  # as mmcv and mmdet say it
_ADVICE = re.compile(r"\b(?:pip|mim) install (?:-U )?(?!git\+)(\w[\w.-]*\w)")  # the last one is what is needed


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
    advised = None
    while isinstance(error, ImportError | RuntimeError):
        if isinstance(error, ImportError) and error.name == "cv2":
            return "cv2"
        said = _NOT_INSTALLED.match(str(error))
        name = error.name if isinstance(error, ModuleNotFoundError) else said and said[1]
        if name:
            package = name.partition(".")[0]
            return package if is_absent(package) else None
        advised = advised or (_ADVICE.findall(str(error)) or [None])[-1]
        error = error.__cause__ or error.__context__
    return advised if advised and is_absent(advised) and not _is_distribution(advised) else None


def _is_distribution(name: str) -> bool:
    """Whether a distribution is installed, such as ``scikit-learn``, which no import finds by this name."""
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def package_of_type(name: str) -> str | None:
    """The absent package that would register the class that a ``type`` in a config names.

    Args:
        name: The type, with or without the scope of a library.

    Returns:
        Name by which the package is imported; ``None`` if none is known for the type, or it is there.
    """
    scope, _, name = name.rpartition(".")
    known = [package for package, names in OPTIMIZER_PACKAGES.items() if name in names]
    return next(filter(is_absent, [*known, *({scope.partition(".")[0]} & {*SCOPE_PACKAGES})]), None)


def missing_package_error(package: str, place: str = "") -> MachineError:
    """The error about an absent package.

    Args:
        package: Name by which it is imported.
        place: Part that asks for it, such as a dotted key of a config.
    """
    where, state = f"{place}: " if place else "", "is missing" if is_absent(package) else "cannot be loaded"
    return MachineError(f"{where}package {package!r} {state}: {install_command(package)}, or remove what asks for it")
