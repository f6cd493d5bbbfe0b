"""What all tests share: no run takes a reference's log-probabilities from another one, unless a test is about that."""

import tempfile
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def reference_cache_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tmp_path_factory.getbasetemp()
    monkeypatch.setattr("posttrain.training.kept_logps.cache_folder", lambda: Path(tempfile.mkdtemp(dir=base)))
