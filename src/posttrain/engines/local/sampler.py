"""Choosing the next token: counter-based randomness, exact top-k and top-p, inverse CDF over blocks of the vocabulary.

Dimensions: R rows, V vocabulary, B block.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...core.types import Sampling

__all__ = ["Draw", "choose", "stream_key", "uniforms"]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_BLOCK = 256  # two passes over ~sqrt(V) numbers instead of one cumulative sum over V
_HEAD = 256  # candidates sorted at first for top-p; rows whose nucleus is larger are sorted in full


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


def _inverse_cdf(weights_RV: Tensor, u_R: Tensor) -> Tensor:
    """Return the first index at which the cumulative sum of the (unnormalised) weights exceeds u times their total."""
    R, V = weights_RV.shape
    blocks = -(-V // _BLOCK)
    padded = torch.nn.functional.pad(weights_RV, (0, blocks * _BLOCK - V)).view(R, blocks, _BLOCK)
    wide = torch.float32 if weights_RV.device.type == "mps" else torch.float64
    upto_RN = padded.sum(-1).to(wide).cumsum(-1)
    target_R1 = u_R.to(wide)[:, None] * upto_RN[:, -1:]
    block_R1 = torch.searchsorted(upto_RN, target_R1, right=True).clamp_(max=blocks - 1)
    below_R1 = torch.where(block_R1 > 0, upto_RN.gather(1, (block_R1 - 1).clamp_(min=0)), torch.zeros_like(target_R1))
    rows = torch.arange(R, device=weights_RV.device)
    inside_RB = padded[rows, block_R1[:, 0]].to(wide)
    offset_R1 = torch.searchsorted(inside_RB.cumsum(-1), target_R1 - below_R1, right=True)
    # Rounding may put the target past a block's own sum: stay on the last index that has weight.
    last_R1 = _BLOCK - 1 - inside_RB.flip(-1).gt(0).to(torch.int8).argmax(-1, keepdim=True)
    return (block_R1 * _BLOCK + torch.minimum(offset_R1, last_R1))[:, 0]


def _plain(scaled_RV: Tensor, u_R: Tensor) -> tuple[Tensor, Tensor]:
    """Sample from softmax(scaled); return tokens and their log-probabilities."""
    top_R1 = scaled_RV.amax(-1, keepdim=True)
    weights_RV = (scaled_RV - top_R1).exp_()
    token_R = _inverse_cdf(weights_RV, u_R)
    chosen_R = scaled_RV.gather(1, token_R[:, None])[:, 0]
    return token_R, chosen_R - top_R1[:, 0] - weights_RV.sum(-1).log_()


def _filtered(scaled_RV: Tensor, u_R: Tensor, top_k: int, top_p: float) -> tuple[Tensor, Tensor]:
    """Sample from softmax(scaled) cut to the `top_k` likeliest, then to the smallest set that holds mass `top_p`."""
    V = scaled_RV.shape[1]
    k = min(top_k or V, V)
    head = min(k, _HEAD) if top_p < 1 else k
    values, indices = scaled_RV.topk(head, dim=-1)
    if k == V:
        total_R1 = scaled_RV.logsumexp(-1, keepdim=True)
    else:
        total_R1 = (values if head == k else scaled_RV.topk(k, dim=-1).values).logsumexp(-1, keepdim=True)
    tokens_R, logprobs_R = _sorted_draw(values, indices, total_R1, u_R, top_p)
    if head < k:
        # Where the distribution is flat the nucleus may be larger than the head: those rows are sorted in full.
        short_R = (values - total_R1).exp().sum(-1) < top_p
        if bool(short_R.any()):
            full = scaled_RV[short_R].topk(k, dim=-1)
            tokens_R[short_R], logprobs_R[short_R] = _sorted_draw(*full, total_R1[short_R], u_R[short_R], top_p)
    return tokens_R, logprobs_R


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
    logits_RV = logits_RV.float()
    lse_R = logits_RV.logsumexp(-1)
    device = logits_RV.device
    groups: dict[tuple[float, int, float], list[int]] = {}
    for row, s in enumerate(samplings):
        key = (0.0, 0, 1.0) if s.temperature == 0 else (s.temperature, s.top_k, s.top_p)
        groups.setdefault(key, []).append(row)
    tokens = torch.empty(len(samplings), dtype=torch.long, device=device)
    logprobs = torch.empty(len(samplings), dtype=torch.float32, device=device)
    for (temperature, top_k, top_p), rows in groups.items():
        index = torch.tensor(rows, device=device)
        part = logits_RV if len(groups) == 1 else logits_RV[index]
        if temperature == 0:
            tokens[index], logprobs[index] = part.argmax(-1), 0.0
            continue
        scaled = part if temperature == 1 else part / temperature
        u = torch.from_numpy(u_R[rows]).to(device, torch.float32 if device.type == "mps" else torch.float64)
        if top_k or top_p < 1:
            tokens[index], logprobs[index] = _filtered(scaled, u, top_k, top_p)
        else:
            tokens[index], logprobs[index] = _plain(scaled, u)
    raw = logits_RV.gather(1, tokens[:, None])[:, 0] - lse_R
    top: list[tuple[tuple[int, float], ...]] = [()] * len(samplings)
    most = max(s.logprobs for s in samplings)
    if most:
        values, indices = logits_RV.topk(min(most, logits_RV.shape[1]), dim=-1)
        pairs = zip(indices.tolist(), (values - lse_R[:, None]).tolist(), samplings, strict=True)
        top = [tuple(zip(i[: s.logprobs], v[: s.logprobs], strict=True)) for i, v, s in pairs]
    return Draw(tokens=tokens.tolist(), logprobs=logprobs.tolist(), raw_logprobs=raw.tolist(), top=top)
