"""The peak of memory is that of what is measured, not of what an earlier stage held."""

import sys

import pytest
import torch

from posttrain.training.memory import forget_peak, peak_bytes


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux resets a process's high-water mark")
def test_what_was_freed_before_is_not_counted() -> None:
    pieces = [torch.ones(25_000) for _ in range(5_000)]  # 0.5 GB in pieces that the C library keeps when they are freed
    held = peak_bytes()
    kept = pieces[::500]
    del pieces
    forget_peak()
    assert peak_bytes() < held - 400e6
    before = peak_bytes()
    more = torch.ones(50_000_000)
    assert peak_bytes() - before == pytest.approx(200e6, rel=0.05)
    del more, kept
