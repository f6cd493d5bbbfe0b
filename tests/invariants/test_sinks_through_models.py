"""Gradients collected in sinks through a whole model: those of autograd, in both weight types, tied heads and untied."""

import pytest
import torch
from tiny_models import demonstrations, llama, model, preferences, tokenizer

from posttrain.core.types import Message
from posttrain.data.masks import encode_completion
from posttrain.models.forward import Forward
from posttrain.training.optimiser import Optimisation, Optimiser

torch.set_num_threads(1)


def encoded(prompt, completion):
    return encode_completion(tokenizer(), [Message(role="user", content=prompt)], completion)


ROWS = [[encoded(row["prompt"], row["completion"])] for row in demonstrations(5)]
PAIRS = [[encoded(row["prompt"], row[side]) for side in ("chosen", "rejected")] for row in preferences(4)]


def gradients(dtype, tied, collected, known):
    """Gradients summed over two micro-batches, by name; `known`: the weights are known in the forward pass, as in SFT."""
    net = model(llama(tie_word_embeddings=tied), dtype=dtype)
    forward = Forward(net)
    optimiser = Optimiser(forward, Optimisation(lr=1.0))
    if collected:
        forward.collect_into(optimiser.sink)
    for groups in (ROWS, PAIRS):
        batch = forward.batch(groups)
        weights_N = torch.linspace(0.5, 1.5, len(batch.targets_N))
        if known:
            loss, _ = forward(batch, weights_N)
        else:
            loss = (forward(batch) * weights_N).sum()
        (0.25 * loss).backward()
    found = dict(zip(optimiser.names, [gradient.clone() for gradient in optimiser.gradients()], strict=True))
    left = [name for name, p in forward.named_parameters() if p.grad is not None and p.dtype == torch.bfloat16]
    assert not left  # nothing that the next step would add again
    return found


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sinks_hold_what_autograd_gives(dtype, tied, known):
    plain, collected = (gradients(dtype, tied, on, known) for on in (False, True))
    assert plain.keys() == collected.keys()
    assert any("embed_tokens" in name for name in plain)
    assert any("lm_head" in name for name in plain) == (not tied)
    for name, gradient in plain.items():
        assert gradient.dtype == collected[name].dtype == torch.float32
        error = (gradient - collected[name]).norm() / gradient.norm()
        assert error < (1e-5 if dtype == torch.float32 else 0.02), name
