"""What work costs: tokens, FLOPs, seconds. Part of `core.types`, which names it too."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Cost", "ModelShape", "Usage"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of one or more engine calls; additive.

    `prompt` is charged once per call, however many samples the call draws. `cached` of those were not computed
    again (a shared prefix), `replayed` of the generated ones came from a generation cache: what was *spent* is
    `prompt - cached + generated - replayed + scored`, what the work *costs* cold leaves both out.
    """

    calls: int = 0
    prompt: int = 0
    cached: int = 0
    generated: int = 0
    replayed: int = 0
    scored: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(**{name: getattr(self, name) + getattr(other, name) for name in self.__slots__})

    def __sub__(self, before: Usage) -> Usage:
        return Usage(**{name: getattr(self, name) - getattr(before, name) for name in self.__slots__})

    @property
    def tokens(self) -> int:
        """Tokens at the cold price."""
        return self.prompt + self.generated + self.scored

    @property
    def tokens_spent(self) -> int:
        """Tokens this run really computed."""
        return self.tokens - self.cached - self.replayed


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a piece of work costs cold (`usage`, `flops`) and what this run paid (`flops_spent`, `seconds`); additive."""

    usage: Usage = field(default_factory=Usage)
    flops: float = 0.0
    flops_spent: float = 0.0
    seconds: float = 0.0
    peak_bytes: int = 0  # maximum, not sum

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            usage=self.usage + other.usage,
            flops=self.flops + other.flops,
            flops_spent=self.flops_spent + other.flops_spent,
            seconds=self.seconds + other.seconds,
            peak_bytes=max(self.peak_bytes, other.peak_bytes),
        )

    def __sub__(self, before: Cost) -> Cost:
        """Return what an account was charged since it stood at `before`; the peak is the whole one."""
        return Cost(
            usage=self.usage - before.usage,
            flops=self.flops - before.flops,
            flops_spent=self.flops_spent - before.flops_spent,
            seconds=self.seconds - before.seconds,
            peak_bytes=self.peak_bytes,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What the FLOPs formulas need of a decoder.

    `matmul_params` counts weights that every token is multiplied with (embedding table excluded, output head
    apart as `head_params`); `attention_width` is layers × query heads × head size.
    """

    parameters: int
    matmul_params: int
    head_params: int
    layers: int
    attention_width: int
