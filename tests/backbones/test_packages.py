"""Absent packages: which one an error is about, and the command that brings it."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest
from mmengine._strategy import deepspeed
from mmengine.optim.optimizer import builder

from backbones.packages import (
    EXTRAS,
    OPTIMIZER_PACKAGES,
    install_command,
    is_absent,
    missing_package,
    package_of_type,
)

ROOT = Path(__file__).resolve().parents[2]
DISTRIBUTIONS = {"mlflow": "mlflow-skinny", "pytorch_grad_cam": "grad-cam"}  # MLflow's client


def raised(module: str) -> ImportError:
    with pytest.raises(ImportError) as caught:
        importlib.import_module(module)
    return caught.value


@pytest.mark.parametrize(
    "package, command",
    [
        ("wandb", "pip install -e '.[trackers]'"),
        ("cv2", "pip install --force-reinstall --no-deps 'opencv-python-headless<4.13'"),
        ("PIL", "pip install pillow"),
        ("sklearn", "pip install scikit-learn"),
        ("skimage", "pip install scikit-image"),
        ("pytorch_grad_cam", "pip install -e '.[explain]'"),
        ("yaml", "pip install pyyaml"),
        ("onnxruntime", "pip install -e '.[export]'"),
        ("lion_pytorch", "pip install lion-pytorch"),
        ("mmpretrain", "pip install onedl-mmpretrain"),
    ],
)
def test_the_name_to_install(package: str, command: str) -> None:
    assert install_command(package) == command


def test_the_extras_are_those_of_the_project() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    for extra, packages in EXTRAS.items():
        stated = re.search(rf"^{extra} = \[(.*?)^\]", text, re.DOTALL | re.MULTILINE)
        assert stated is not None
        assert set(re.findall(r'"([\w-]+)>=', stated[1])) == {DISTRIBUTIONS.get(one, one) for one in packages}


def test_the_package_that_an_error_is_about() -> None:
    absent = raised("absent_package.inner.part")
    assert missing_package(absent) == "absent_package"
    for advice in (ImportError("run pip install something"), RuntimeError("needs something")):
        advice.__context__ = absent
        assert missing_package(advice) == "absent_package"
    assert missing_package(RuntimeError("absent_package is not installed")) == "absent_package"
    assert missing_package(ImportError("Package `absent_package` is not installed. Please run")) == "absent_package"


@pytest.mark.parametrize(
    "said, package",
    [
        ('Please run "pip install absent-package" to install this package.', "absent-package"),
        ("needed: pip install -U absent_package.", "absent_package"),
        ('Please run "pip install other" and run "mim install absent_package" first.', "absent_package"),
        ('Please run "pip install scikit-learn" to install sklearn first.', None),  # it is there
        ('Please run "pip install -U torch".', None),
        ("Please run pip install git+https://host/owner/name.git", None),
    ],
)
def test_advice_of_a_library_whose_import_failed_earlier(said: str, package: str | None) -> None:
    assert missing_package(ImportError(said)) == missing_package(NotImplementedError(said)) == package


def test_types_that_a_package_registers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backbones.packages.is_absent", lambda package: package != "dadaptation")
    assert package_of_type("Lion") == package_of_type("mmengine.Lion") == "lion_pytorch"
    assert package_of_type("PagedAdamW8bit") == package_of_type("bnb_SGD") == package_of_type("LAMB") == "bitsandbytes"
    assert package_of_type("mmpretrain.ConvNeXt") == package_of_type("mmpretrain.models.ConvNeXt") == "mmpretrain"
    for other in ("AdamW", "Lyon", "mmpretrain", "mmdet.ConvNeXt", "", "DAdaptAdam"):
        assert package_of_type(other) is None


def test_the_optimizers_are_those_that_mmengine_registers() -> None:
    """By name, but for two packages whose optimizers mmengine does not name, and NPUs, which are no question of pip."""
    source = inspect.getsource(builder) + inspect.getsource(deepspeed.register_deepspeed_optimizers)
    imported = re.findall(r"^    +(?:import|from) (\w+)", source, re.MULTILINE)
    assert {*imported} - {"torch_npu"} == {*OPTIMIZER_PACKAGES}
    for package in OPTIMIZER_PACKAGES.keys() - {"Sophia", "bitsandbytes"}:
        assert all(re.search(rf"\b{name}\b", source) for name in OPTIMIZER_PACKAGES[package])


def test_what_no_package_would_bring() -> None:
    """A module that an installed package or this project lacks, a part of the standard library, other errors."""
    assert missing_package(raised("torch.absent_module")) is None
    assert missing_package(raised("backbones.absent_module")) is None
    assert missing_package(raised("json.absent_module")) is None
    with pytest.raises(ImportError) as caught:
        from backbones import absent_name  # type: ignore[attr-defined]  # noqa: F401
    assert missing_package(caught.value) is None
    assert missing_package(RuntimeError("torch is not installed")) is None
    other = ValueError("handled")
    other.__context__ = raised("absent_package")  # it was caught, and something else went wrong
    assert missing_package(other) is None
    assert missing_package(None) is None
    assert not is_absent("_winapi")
