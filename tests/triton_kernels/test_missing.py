"""Where Triton cannot serve, the package says why, and costs next to nothing."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from affinity_pool import triton_kernels


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def pretend(monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    """That this version of triton is installed, or that what is there does not import."""
    module = types.ModuleType("triton")
    if version is not None:
        module.__version__ = version
    monkeypatch.setitem(sys.modules, "triton", module)
    monkeypatch.setattr(triton_kernels, "find_spec", lambda name: object())


def test_without_a_gpu_triton_is_not_even_looked_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(triton_kernels, "find_spec", None)
    assert triton_kernels.missing() == "no CUDA or ROCm device here"


@pytest.mark.usefixtures("gpu")
def test_without_triton_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(triton_kernels, "find_spec", lambda name: None)
    assert triton_kernels.missing() == "triton is not installed: pip install triton"


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("version", ["2.3.1", "3.3.1"])
def test_an_old_triton_is_refused_by_its_version(monkeypatch, version):
    pretend(monkeypatch, version)
    assert triton_kernels.missing() == f"triton {version} is too old: 3.4 or newer is needed"


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("version", ["3.4.0", "3.10.0+rocm7", "4.0"])
def test_a_new_one_will_do(monkeypatch, version):
    pretend(monkeypatch, version)
    assert triton_kernels.missing() is None


@pytest.mark.usefixtures("gpu")
def test_a_broken_triton_is_reported_not_raised(monkeypatch):
    pretend(monkeypatch, None)
    assert triton_kernels.missing().startswith("triton is installed, but does not import: ")
