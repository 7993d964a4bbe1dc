"""``tools/doctor.py`` on machines that are pretended, and on this one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.config import ConfigDict
from packaging.specifiers import SpecifierSet

from analysis.doctor import data as doctor_data
from analysis.doctor import examination as doctor
from analysis.doctor import network as doctor_network
from analysis.doctor import trial as doctor_trial
from analysis.doctor.data import check_config, check_data_set, check_disk, check_places, check_work_dir, free_bytes
from analysis.doctor.examination import CheckResult, DoctorOptions, diagnose, run_check, write_results
from analysis.doctor.hardware import (
    Gpus,
    check_cores,
    check_gpus,
    check_limits,
    check_memory,
    check_precision,
    check_shared_memory,
    cpu_quota,
)
from analysis.doctor.network import check_name, check_nccl, check_port, check_sum, sum_over_two
from analysis.doctor.software import (
    check_code,
    check_compile,
    check_inference,
    check_namesakes,
    check_opencv,
    check_operators,
    check_packages,
    check_python,
    distributions_with,
    requirements,
)
from analysis.doctor.trial import TRIAL_TASKS, ProgramEnd, task_result, trial, trial_programs
from engine.config.world import Launch
from engine.report.html import GIB
from engine.report.run_dir import write_json
from tests.shards import write_tar
from tests.store_server import serve

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20
H100 = {"name": "H100", "memory_bytes": 80 * GIB, "free_bytes": 79 * GIB, "capability": (9, 0), "trouble": ""}
ARCHITECTURES = ("sm_80", "sm_90", "compute_120")


def one(results: Iterable[CheckResult], level: str, *words: str) -> None:
    """Of the results one is of a level and says certain words; a bad one names its fix; all are lines."""
    listed = list(results)
    matches = [r for r in listed if r.level == level and all(word in str(r) for word in words)]
    assert len(matches) == 1, listed
    assert all("\n" not in str(result) for result in listed)
    assert all(result.fix for result in listed if result.level == "bad")
    assert not [result for result in listed if result.level == "bad" and result not in matches]


@pytest.mark.parametrize(
    ("version", "level"), [((3, 9, 1), "bad"), ((3, 10, 0), "ok"), ((3, 13, 2), "ok"), ((3, 14, 0), "note")]
)
def test_python(version: tuple[int, ...], level: str) -> None:
    one(check_python(version), level, ".".join(map(str, version)))


def packages(**changed: str | None) -> list[CheckResult]:
    pins = {"torch": "2.11.0", "timm": "1.0.31", "six": "1.0"}
    ranges = {"torch": SpecifierSet(">=2.11,<2.12"), "timm": SpecifierSet(">=1.0.31,<1.1")}
    installed = {name: version for name, version in (pins | changed).items() if version}
    return list(check_packages(pins, ranges, installed))


@pytest.mark.parametrize(
    ("changed", "level", "words"),
    [
        ({}, "ok", ("packages", "3 of 3 as in")),
        ({"torch": "2.11.0+cu130"}, "ok", ("3 of 3",)),
        ({"torch": None}, "bad", ("torch", "is not installed; pip install --no-deps torch==2.11.0")),
        ({"torch": "2.10.0"}, "bad", ("2.10.0 is older than may do", "pip install torch==2.11.0")),
        ({"torch": "2.12.0"}, "bad", ("2.12.0 is newer than may do",)),
        (
            {"timm": "1.0.40"},
            "note",
            (
                "timm",
                "1.0.40 is newer than what is tested, 1.0.31",
            ),
        ),
        ({"six": None}, "note", ("1 of those that others bring differ", "six missing")),
    ],
)
def test_packages(changed: dict[str, str | None], level: str, words: tuple[str, ...]) -> None:
    one(packages(**changed), level, *words)


def test_the_pins_and_ranges_are_those_of_the_files() -> None:
    pins, ranges = requirements()
    assert {"torch", "onedl-mmcv", "faster-coco-eval"} <= set(pins)
    assert set(ranges) <= set(pins)
    assert "torch" in ranges
    assert "ruff" not in ranges
    assert all(ranges[name].contains(pins[name]) for name in ranges)


GUI, HEADLESS = "opencv-python", "opencv-python-headless"


@pytest.mark.parametrize(
    "found, absent, level, words",
    [
        ([HEADLESS], False, "ok", "opencv-python-headless"),
        (
            [GUI, HEADLESS],
            False,
            "bad",
            f"2 builds lie over each other in one folder: {GUI}, {HEADLESS}; pip uninstall",
        ),
        ([GUI], False, "note", "needs libGL; pip uninstall -y opencv-python; pip install --force-reinstall"),
        ([HEADLESS], True, "bad", "its files are not there; pip install --force-reinstall"),
        ([], False, "ok", "not by pip"),
    ],
)
def test_builds_of_opencv(found: list[str], absent: bool, level: str, words: str) -> None:
    one(check_opencv(found, absent), level, "OpenCV", words)


def test_only_one_opencv_is_installed_here() -> None:
    assert distributions_with("cv2") == [HEADLESS]


def test_names_that_another_package_has() -> None:
    assert distributions_with("torch") == ["torch"]
    one(check_namesakes({"engine": [], "demo": []}), "ok", "names")
    one(check_namesakes({"engine": ["other"], "demo": []}), "bad", "'engine'", "pip uninstall other")


def test_operators_of_this_installation() -> None:
    one(check_operators("cpu"), "ok", "operators, CPU", "known answers")


@pytest.mark.parametrize(
    ("kept", "pooled", "words"),
    [
        ([0, 1, 2], [2.5, 4.5, 10.5, 12.5], "nms keeps boxes [0, 1, 2]"),
        ([0, 2], [2.5, 4.5, 10.5, 12.0], "roi_align gives [2.5, 4.5, 10.5, 12.0]"),
        ([0, 2], [float("nan")] * 4, "roi_align gives"),
    ],
)
def test_operators_that_give_another_answer(kept: list[int], pooled: list[float], words: str) -> None:
    ops = SimpleNamespace(nms=lambda *_: (None, torch.tensor(kept)), roi_align=lambda *_: torch.tensor(pooled))
    one(check_operators("cpu", ops), "bad", words)


@pytest.mark.parametrize(
    ("compiler", "triton", "level", "words"),
    [
        (None, True, "note", "no C++ compiler"),
        ("/bin/g++", None, "note", "no Triton"),
        ("/bin/g++", True, "ok", "g++ and Triton"),
    ],
)
def test_compile(compiler: str | None, triton: Any, level: str, words: str) -> None:
    one(check_compile(compiler, triton), level, words)


def test_inference() -> None:
    one(check_inference(None), "ok", "CPU inference")
    one(check_inference("no C compiler is found"), "note", "no C compiler", "gcc")


def test_code() -> None:
    state = {"commit": "0123456789abcdef", "branch": "main", "dirty": False}
    one(check_code(state), "ok", "0123456789ab on main")
    one(check_code(state | {"dirty": True}), "note", "with changes", "code.diff")
    one(check_code({"commit": None, "reason": "not a git checkout"}), "note", "not a git checkout")


def gpus(*usable: dict[str, Any], **more: Any) -> Gpus:
    settings = {"built_for": "13.0", "present": len(usable), "driver": "580.1", "supports": 13000}
    return Gpus(usable=usable, architectures=ARCHITECTURES, **(settings | more))


@pytest.mark.parametrize(
    ("found", "level", "words"),
    [
        (gpus(present=0, driver=None), "note", "none"),
        (gpus(present=0, driver=None, built_for=None), "note", "none"),
        (gpus(present=2, hidden=""), "note", "hidden by CUDA_VISIBLE_DEVICES"),
        (gpus(present=2, built_for=None), "bad", "a build without CUDA"),
        (gpus(present=2, supports=12040), "bad", "supports CUDA 12.4, torch is built for 13.0; update the driver"),
        (gpus(present=1, error="RuntimeError: unknown error"), "bad", "RuntimeError: unknown error"),
        (gpus(H100), "ok", "H100, 80.00 GiB, compute capability 9.0"),
        (gpus(H100 | {"free_bytes": GIB}), "note", "1.00 GiB free; another process"),
        (gpus(H100 | {"name": "H100 MIG 1g.10gb"}), "note", "a slice (MIG)"),
        (gpus(H100 | {"trouble": "RuntimeError: busy or unavailable"}), "bad", "cannot compute: RuntimeError: busy"),
        (gpus(H100 | {"capability": (7, 0)}), "bad", "torch has no code for it"),
        (gpus(H100 | {"capability": (10, 0)}), "bad", "torch has no code for it"),
        (gpus(H100 | {"capability": (8, 6)}), "ok", "8.6"),
        (gpus(H100 | {"capability": (12, 1)}), "ok", "12.1"),
        (gpus(H100, H100 | {"name": "A100"}), "note", "of several kinds"),
    ],
)
def test_gpus(found: Gpus, level: str, words: str) -> None:
    one(check_gpus(found), level, words)


def test_a_gpu_for_each_process() -> None:
    one(check_gpus(gpus(H100), processes=2), "bad", "1 for 2 processes")
    one(check_gpus(gpus(H100), processes=1), "ok", "GPU 0")


def test_gpus_of_this_machine() -> None:
    assert all(isinstance(result, CheckResult) for result in check_gpus(Gpus.detect()))


def test_precision() -> None:
    one(check_precision([(9, 0)], set()), "ok", "bfloat16 and TF32")
    one(check_precision([(9, 0), (7, 5)], set()), "note", "7.5: no bfloat16", "optim_wrapper.dtype=float16")
    one(check_precision([], {"amx_bf16", "avx512f", "avx2"}), "ok", "bfloat16 (AMX), AVX-512")
    one(check_precision([], {"avx2"}), "ok", "float32 only, AVX2")


@pytest.mark.parametrize(
    ("arguments", "level", "words"),
    [
        ((8, None, None, 1), "ok", "8 cores"),
        ((8, "4", None, 2), "ok", "OMP_NUM_THREADS 4"),
        (
            (8, "4", None, 4),
            "note",
            "for 4 x OMP_NUM_THREADS=4; threads get into each other's way: set it to 2",
        ),
        ((8, "many", None, 1), "bad", "OMP_NUM_THREADS=many"),
        ((8, "0", None, 1), "bad", "OMP_NUM_THREADS=0"),
        ((8, None, 1.5, 1), "note", "may use the time of 1.5; set OMP_NUM_THREADS=1"),
        ((1, None, None, 1), "note", "1 core;"),
    ],
)
def test_cores(arguments: tuple[Any, ...], level: str, words: str) -> None:
    one(check_cores(*arguments), level, words)


@pytest.mark.parametrize(("text", "expected"), [("max 100000", None), ("150000 100000", 1.5), ("", None)])
def test_the_time_that_a_container_may_use(text: str, expected: float | None, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert cpu_quota(tmp_path) == expected
    assert cpu_quota(tmp_path / "no") is None


@pytest.mark.parametrize(("size", "level"), [(None, "note"), (2 * GIB, "bad"), (8 * GIB, "note"), (64 * GIB, "ok")])
def test_memory(size: int | None, level: str) -> None:
    one(check_memory(size, "Some CPU"), level, "memory")


@pytest.mark.parametrize(("size", "level"), [(None, "note"), (64 * MIB, "bad"), (GIB, "note"), (8 * GIB, "ok")])
def test_shared_memory(size: int | None, level: str) -> None:
    one(check_shared_memory(size), level, "shared memory", *(["--shm-size"] if size == 64 * MIB else []))


@pytest.mark.parametrize(("files", "level"), [(256, "bad"), (1024, "note"), (65536, "ok"), (-1, "ok")])
def test_limits(files: int, level: str) -> None:
    one(check_limits(files, 65530), level, "open files")
    one(check_limits(65536, 1000), "note", "memory maps", "1000 at most")


def fail(*_: Any) -> Any:
    raise OSError(1, "not here")


def test_names_and_ports() -> None:
    one(check_name(fail), "note", "does not resolve")
    one(check_name(lambda: "127.0.1.1"), "note", "resolves to 127.0.1.1")
    one(check_name(lambda: "10.0.0.1"), "ok", "resolves")
    one(check_port(29500, fail), "bad", "no port of 127.0.0.1 can be opened: not here")
    one(check_port(29500, lambda port: fail() if port else None), "note", "29500 is in use")
    one(check_port(29500, lambda port: None), "ok", "29500")


def test_a_port_that_is_in_use_is_seen() -> None:
    with doctor_network.socket.socket() as taken:
        taken.bind((doctor_network.LOOPBACK, 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        one(check_port(port, doctor_network.bind), "note", f"{port} is in use")
    one(check_port(port, doctor_network.bind), "ok", f"{port}")


def test_sums() -> None:
    one(check_sum("gloo", lambda: "they did not meet", True), "bad", "they did not meet", "GLOO_SOCKET_IFNAME")
    one(check_sum("gloo", lambda: "", True), "ok", "two processes add a number")
    one(check_sum("gloo", lambda: "", False), "bad", "built without")
    assert not list(check_nccl(0, True, fail))
    one(check_nccl(1, True, fail), "ok", "of use with several GPUs")
    one(check_nccl(2, False, fail), "bad", "built without")
    one(check_nccl(2, True, lambda: "unhandled system error"), "bad", "unhandled system error", "NCCL_SOCKET_IFNAME")


def test_a_real_sum_over_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sum_over_two("gloo") == ""
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\n[ $4 = 0 ] || { echo one; echo 'no route' >&2; exit 3; }\n")
    program.chmod(0o755)
    monkeypatch.setattr(doctor_network.sys, "executable", str(program))
    assert sum_over_two("gloo") == "rank 1 ended with code 3: no route"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    assert sum_over_two("gloo", timeout=0.1) == "they did not meet within 0.1 s"


def test_places_of_data(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full/train").mkdir(parents=True)
    one(check_places({"a": tmp_path / "absent"}), "note", "is absent", "Bring your data")
    one(check_places({"a": tmp_path / "empty"}), "note", "is empty")
    one(check_places({"a": tmp_path / "full"}), "ok", "is there")
    (tmp_path / "ADEChallengeData2016.zip").write_bytes(b"no archive")
    one(check_places({"a": tmp_path / "ADEChallengeData2016"}), "bad", "ADEChallengeData2016.zip", "fetch it again")
    (tmp_path / "full/train/1.png").touch()
    shutil.make_archive(str(tmp_path / "ADEChallengeData2016"), "zip", tmp_path, "full")
    one(check_places({"a": tmp_path / "ADEChallengeData2016"}), "ok", "ADEChallengeData2016.zip is there")
    assert [str(path) for path in doctor_data.usual_places().values()] == [
        "data/imagenet",
        "data/coco",
        "data/ade/ADEChallengeData2016",
    ]


def test_disk(tmp_path: Path) -> None:
    one(check_disk(GIB, tmp_path), "bad", "1.00 GiB free", "--work-dir")
    one(check_disk(5 * GIB, tmp_path), "note", "5.00 GiB free")
    one(check_disk(50 * GIB, tmp_path), "ok", "50.00 GiB free")
    one(check_disk(50 * GIB, tmp_path, needed=60 * GIB), "bad", "checkpoints take up to 60.00 GiB")
    one(check_disk(61 * GIB, tmp_path, needed=60 * GIB), "note", "61.00 GiB free")
    assert free_bytes(tmp_path / "not/yet/there") > 0


def test_a_place_for_results(tmp_path: Path) -> None:
    one(check_work_dir(tmp_path / "not/yet"), "ok", "can be written")
    assert not list(tmp_path.iterdir())
    one(check_work_dir(Path("/proc/1")), "bad", "cannot be written", "--work-dir")


def test_a_config_and_its_data(digits: Path, tmp_path: Path) -> None:
    def config(**settings: str) -> Path:
        path = tmp_path / "mine.py"
        lines = [f"_base_ = [{str(ROOT / 'configs/classification/digits.py')!r}]"]
        path.write_text("\n".join([*lines, *(f"{key} = {value}" for key, value in settings.items())]))
        return path

    here = {"data_root": repr(str(digits / "imagenet")), "work_dir": repr(str(tmp_path / "work"))}
    results = list(check_config(str(config(**here)), Launch()))
    assert [result.name for result in results] == ["config", "data, train", "data, val", "work_dirs", "disk"]
    assert {result.level for result in results} <= {"ok", "note"}
    one(check_config(str(config(**here)), Launch(processes=7)), "bad", "does not divide among 7 processes")
    absent = list(check_config(str(config(**here, load_from="'absent.pth'")), Launch()))
    one(absent, "bad", "load_from: absent.pth is absent")
    absent = list(check_config(str(config(data_root="'/absent'")), Launch()))
    assert [result.level for result in absent if result.name.startswith("data")] == ["bad", "bad"]
    one(check_config("configs/absent.py", Launch()), "bad", "'configs/absent.py' does not exist")


def test_data_in_an_archive_or_a_store_is_there(digits: Path, tmp_path: Path) -> None:
    (tmp_path / "coco").mkdir()
    shutil.make_archive(str(tmp_path / "coco/train2017"), "zip", digits / "coco", "train2017")
    shutil.make_archive(str(tmp_path / "coco/annotations_trainval2017"), "zip", digits / "coco", "annotations")
    names = dict(ann_file="annotations/instances_train2017.json", data_prefix=dict(img="train2017/"))
    coco = ConfigDict(data_root=str(tmp_path / "coco"), **names)
    one([check_data_set("data", coco)], "ok", f"{tmp_path / 'coco'} is there")
    coco.data_prefix.img = "val2017/"
    one([check_data_set("data", coco)], "bad", f"{tmp_path / 'coco/val2017'} absent")
    write_tar(tmp_path / "store/train/a.tar", [])
    with serve(tmp_path / "store") as store:
        one([check_data_set("data", ConfigDict(data_root=f"{store.url}/train/a.tar", split="train"))], "ok", store.url)


def test_a_check_that_fails_itself_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Iterable[CheckResult]:
        raise ZeroDivisionError("first\nsecond")

    one(run_check("it", broken), "bad", "it", "the check itself failed: ZeroDivisionError: first")
    one(
        diagnose(DoctorOptions(), ["no_such_group"]), "bad", "its checks cannot be loaded: ModuleNotFoundError", ".venv"
    )
    module = SimpleNamespace(pretended_checks=lambda options: {"a": broken, "b": lambda: [doctor.ok("b", "fine")]})
    monkeypatch.setitem(sys.modules, "analysis.doctor.pretended", module)
    assert [result.level for result in diagnose(DoctorOptions(), ["pretended"])] == ["bad", "ok"]


def test_results_as_json(tmp_path: Path) -> None:
    write_results([doctor.bad("a", "b", "c")], tmp_path / "new/results.json")
    written = json.loads((tmp_path / "new/results.json").read_text())
    assert written == {"results": [{"level": "bad", "what": "a", "found": "b", "fix": "c"}]}


@pytest.fixture
def tried(tmp_path: Path) -> Path:
    """What a sound trial of the classifier leaves."""
    folder = tmp_path / "classification"
    scalars = folder / "20260101_000000/vis_data/scalars.json"
    scalars.parent.mkdir(parents=True)
    scalars.write_text('{"lr": 1.0, "loss": 2.0, "step": 1}\n{"top1": 50.0, "step": 1}\n')
    write_json(folder / "test.json", {"metrics": {"top1": 50.0}})
    write_json(folder / "starts.json", {"starts": [{"outcome": "finished"}]})
    (folder / "report.html").touch()
    (tmp_path / "classification train.log").write_text("begin\nerror: the roof leaks\n")
    return tmp_path


def test_the_trial_judges_a_task(tried: Path) -> None:
    task, done = TRIAL_TASKS[0], {"classification train": ProgramEnd(0, 2.0), "classification test": ProgramEnd(0, 1.0)}
    one([task_result(task, tried, done)], "ok", "1 steps trained and tested in 3.0 s")
    one(
        [task_result(task, tried, done | {"classification train": ProgramEnd(2, 1)})],
        "bad",
        "code 2: error: the roof leaks",
    )
    one([task_result(task, tried, {})], "bad", "train did not end: error: the roof leaks", "train.log")
    write_json(tried / "classification/starts.json", {"starts": [{"outcome": "stopped"}]})
    one([task_result(task, tried, done)], "bad", "the training left no report")
    write_json(tried / "classification/test.json", {"metrics": {"top1": 51.0}})
    one([task_result(task, tried, done)], "bad", "top1 50 in training, 51 in the test")
    write_json(tried / "classification/test.json", {})
    one([task_result(task, tried, done)], "bad", "no metrics")
    (tried / "classification/20260101_000000/vis_data/scalars.json").write_text('{"lr": 1.0, "loss": NaN, "step": 1}')
    one([task_result(task, tried, done)], "bad", "0 finite losses")


def test_the_trial_runs_what_people_run(tmp_path: Path) -> None:
    programs = trial_programs(tmp_path)
    assert list(programs) == [f"{task.name} {what}" for task in TRIAL_TASKS for what in ("train", "test")]
    assert all(Path(arguments[0]).is_file() and Path(arguments[1]).is_file() for arguments in programs.values())
    assert f"model.backbone.weights={tmp_path}/classification/epoch_1.pth" in programs["detection train"]


def test_a_trial_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_trial, "make_digits", lambda *_, **__: None)
    results = list(trial(tmp_path, TRIAL_TASKS[:1], timeout=0.1))
    one(results, "bad", "classification", "train did not end")
    assert tmp_path.is_dir()


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, "tools/doctor.py", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=300)


def test_an_installation_without_torch_is_a_finding_and_no_stack(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.13: cannot open shared object file')")
    ended = run("--quick", PYTHONPATH=str(tmp_path))
    assert (ended.returncode, ended.stderr) == (1, "")
    assert "bad  software" in ended.stdout
    assert "ImportError: libcudart.so.13: cannot open shared object file; make the environment again" in ended.stdout
    assert "Traceback" not in ended.stdout


def test_the_program(tmp_path: Path) -> None:
    ended = run("--json", str(tmp_path / "found.json"))
    results = json.loads((tmp_path / "found.json").read_text())["results"]
    bad = [result for result in results if result["level"] == "bad"]
    assert ended.returncode == bool(bad)
    assert not bad, ended.stdout
    lines = ended.stdout.splitlines()
    assert len(lines) == len(results) + 1
    assert lines[-1] == "nothing is bad: this machine is fit to train"
    for task in TRIAL_TASKS:
        assert any(
            line.startswith(f"ok   {task.name}") and "the test finds what the training found" in line for line in lines
        )
    assert any(line.startswith("ok   gloo") for line in lines)
