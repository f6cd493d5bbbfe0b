"""What all tests share: no run takes a reference's log-probabilities from another one, unless a test is about that."""

import gc
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def reference_cache_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tmp_path_factory.getbasetemp()
    monkeypatch.setattr("posttrain.training.kept_logps.cache_folder", lambda: Path(tempfile.mkdtemp(dir=base)))


@pytest.fixture(scope="session", autouse=True)
def nothing_is_flushed() -> Iterator[None]:
    """Processes are killed here, not the machine: what the system has, it need not write to the disk at once."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda _: None)
        yield


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Every training collects garbage first: not in all that torch and its like have imported, which takes 0.4 s."""
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    gc.collect()  # what the test itself left behind, before the next one's `freeze` keeps it
