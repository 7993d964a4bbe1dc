"""Properties of the CPU that forms depend on."""

from __future__ import annotations

import pytest

from backbones.kernels.cpu.dispatch import ISA_LIMITS, cpu_model, cpu_name


@pytest.mark.parametrize("limit", ISA_LIMITS)
def test_forms_measured_under_a_limit_have_a_name_of_their_own(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ISA_LIMITS:
        monkeypatch.delenv(name, raising=False)
    free = cpu_name.__wrapped__()
    assert free.startswith(cpu_model())
    monkeypatch.setenv(limit, "AVX2")
    assert cpu_name.__wrapped__() == f"{free} {limit}=AVX2"
