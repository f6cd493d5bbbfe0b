"""Choosing the next token: counter-based randomness, exact top-k and top-p, inverse CDF over blocks of the vocabulary.

Dimensions: R rows, V vocabulary, B block.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...core.types import Sampling

__all__ = ["Draw", "choose", "stream_key", "uniforms"]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_BLOCK = 256  # two passes over ~sqrt(V) numbers instead of one cumulative sum over V
_CACHE = 1 << 20  # bytes of float32 logits worked on at a time: half the second-level cache of a present-day core
_HEADS = (256, 4096)  # likeliest tokens sorted for top-p; only rows whose nucleus is larger are sorted further


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return splitmix64's output function (Steele, Lea & Flood 2014, figure 15)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def stream_key(seed: int, prompt: Sequence[int], sample: int) -> int:
    """Return the 64-bit key of one sample's random stream: a digest of the seed, the prompt's token ids and its index."""
    digest = hashlib.blake2b(digest_size=8)
    digest.update(f"{seed},{sample}:".encode())
    digest.update(np.asarray(prompt, dtype=np.int64).tobytes())
    return int.from_bytes(digest.digest(), "little")


def uniforms(keys: npt.NDArray[np.uint64], positions: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return u in [0, 1) for each (stream key, absolute position): the same whatever else is in the batch."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is meant
        mixed = _mix(keys + (positions.astype(np.uint64) + np.uint64(1)) * _GOLDEN)
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


@dataclass(slots=True)
class Draw:
    """The tokens of one step, as Python numbers: token, log-probability as sampled and under the model, top-k."""

    tokens: list[int]
    logprobs: list[float]
    raw_logprobs: list[float]
    top: list[tuple[tuple[int, float], ...]]


def _block_sums(weights_RV: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights in blocks, [R, N, B] (zeros fill the last), and the sum of each block, [R, N]."""
    R, V = weights_RV.shape
    missing = -V % _BLOCK
    padded_RNB = (torch.nn.functional.pad(weights_RV, (0, missing)) if missing else weights_RV).view(R, -1, _BLOCK)
    return padded_RNB, padded_RNB.sum(-1)


def _inverse_cdf(padded_RNB: Tensor, sums_RN: Tensor, u_R: Tensor) -> Tensor:
    """Return the first index at which the cumulative sum of the (unnormalised) weights exceeds u times their total."""
    upto_RN = sums_RN.to(u_R.dtype).cumsum(-1)
    target_R1 = u_R[:, None] * upto_RN[:, -1:]
    block_R1 = torch.searchsorted(upto_RN, target_R1, right=True).clamp_(max=upto_RN.shape[1] - 1)
    below_R1 = torch.where(block_R1 > 0, upto_RN.gather(1, (block_R1 - 1).clamp_(min=0)), torch.zeros_like(target_R1))
    rows = torch.arange(len(u_R), device=u_R.device)
    inside_RB = padded_RNB[rows, block_R1[:, 0]].to(u_R.dtype)
    offset_R1 = torch.searchsorted(inside_RB.cumsum(-1), target_R1 - below_R1, right=True)
    # Rounding may put the target past a block's own sum: stay on the last index that has weight.
    last_R1 = _BLOCK - 1 - inside_RB.flip(-1).gt(0).to(torch.int8).argmax(-1, keepdim=True)
    return (block_R1 * _BLOCK + torch.minimum(offset_R1, last_R1))[:, 0]


def _filtered(scaled_RV: Tensor, u_R: Tensor, top_k: int, top_p: float) -> tuple[Tensor, Tensor]:
    """Sample from softmax(scaled) cut to the `top_k` likeliest, then to the smallest set that holds mass `top_p`."""
    R, V = scaled_RV.shape
    k = min(top_k or V, V)
    total_R1 = (scaled_RV if k == V else scaled_RV.topk(k, dim=-1).values).logsumexp(-1, keepdim=True)
    token_R = torch.empty(R, dtype=torch.long, device=u_R.device)
    logprob_R = torch.empty_like(scaled_RV[:, 0])
    left = torch.arange(R, device=u_R.device)  # rows whose nucleus has been longer than the heads sorted so far
    for head in [h for h in _HEADS if h < k and top_p < 1] + [k]:
        values, indices = scaled_RV[left].topk(head, dim=-1)
        done = (values - total_R1[left]).exp().sum(-1) >= top_p if head < k else torch.ones_like(left, dtype=torch.bool)
        rows = left[done]
        token_R[rows], logprob_R[rows] = _sorted_draw(values[done], indices[done], total_R1[rows], u_R[rows], top_p)
        left = left[~done]
        if not len(left):
            break
    return token_R, logprob_R


def _sorted_draw(values: Tensor, indices: Tensor, total_R1: Tensor, u_R: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """Draw from candidates in descending order, cut where the mass before them has reached `top_p`."""
    probs = (values - total_R1).exp()
    upto = probs.cumsum(-1)
    keep = (upto - probs) < top_p  # the token that crosses the threshold stays in
    keep[:, 0] = True
    probs = probs * keep
    upto = probs.cumsum(-1)
    mass_R1 = upto[:, -1:]
    pick = torch.searchsorted(upto, u_R.to(upto.dtype)[:, None] * mass_R1, right=True)
    pick = torch.minimum(pick, keep.sum(-1, keepdim=True) - 1)
    logprob = values.gather(1, pick) - total_R1 - mass_R1.log()
    return indices.gather(1, pick)[:, 0], logprob[:, 0]


def choose(logits_RV: Tensor, samplings: Sequence[Sampling], u_R: npt.NDArray[np.float64]) -> Draw:
    """Return the next token of each row.

    p_v ∝ exp(logit_v / temperature) within the top-k and top-p sets; the token is the first whose cumulative
    probability exceeds u. At temperature 0 it is the arg max, with log-probability 0 as sampled.
    """
    R, V = logits_RV.shape
    # On CPU a few rows at a time: all passes over them then happen in the cache of a core.
    size = max(1, _CACHE // (4 * V)) if logits_RV.device.type == "cpu" else R
    drawn = Draw(tokens=[], logprobs=[], raw_logprobs=[], top=[])
    for at in range(0, R, size):
        _choose(drawn, logits_RV[at : at + size].float(), samplings[at : at + size], u_R[at : at + size])
    return drawn


def _choose(drawn: Draw, logits_RV: Tensor, samplings: Sequence[Sampling], u_R: npt.NDArray[np.float64]) -> None:
    device = logits_RV.device
    u = torch.from_numpy(u_R).to(torch.float32 if device.type == "mps" else torch.float64).to(device)
    top_R, best_R = logits_RV.max(-1)
    shifted_RV = logits_RV - top_R[:, None]
    padded_RNB, sums_RN = _block_sums(shifted_RV.exp())
    lse_R = sums_RN.sum(-1).log()  # of the shifted logits
    token_R, logprob_R = best_R, torch.zeros_like(top_R)
    groups: dict[tuple[float, int, float], list[int]] = {}
    for row, s in enumerate(samplings):
        if s.temperature > 0:
            groups.setdefault((s.temperature, s.top_k, s.top_p), []).append(row)
    for (temperature, top_k, top_p), rows in groups.items():
        index: Any = slice(None) if len(rows) == len(samplings) else torch.tensor(rows, device=device)
        part_RV = shifted_RV[index] if temperature == 1 else shifted_RV[index] / temperature
        if top_k or top_p < 1:
            token_R[index], logprob_R[index] = _filtered(part_RV, u[index], top_k, top_p)
            continue
        padded, sums = (padded_RNB[index], sums_RN[index]) if temperature == 1 else _block_sums(part_RV.exp())
        token_R[index] = _inverse_cdf(padded, sums, u[index])
        logprob_R[index] = part_RV.gather(1, token_R[index][:, None])[:, 0] - sums.sum(-1).log()
    raw_R = shifted_RV.gather(1, token_R[:, None])[:, 0] - lse_R
    drawn.tokens += token_R.tolist()
    drawn.logprobs += logprob_R.tolist()
    drawn.raw_logprobs += raw_R.tolist()
    most = max(s.logprobs for s in samplings)
    if not most:
        drawn.top += [()] * len(samplings)
        return
    values, indices = shifted_RV.topk(min(most, logits_RV.shape[1]), dim=-1)
    pairs = zip(indices.tolist(), (values - lse_R[:, None]).tolist(), samplings, strict=True)
    drawn.top += [tuple(zip(i[: s.logprobs], v[: s.logprobs], strict=True)) for i, v, s in pairs]
