"""Finding and loading a model: an alias, a folder, an adapter, a GGUF file or a hub id, by one function.

Weights come from safetensors only (a pickle can run code), and no code from a model's repository is ever executed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..core.errors import ModelError, did_you_mean
from ..core.files import file_hash, read_json, write_atomic
from ..core.types import ModelShape
from .adapters import attach, base_of, is_adapter, unmerged
from .adapters import merge as merge_adapter
from .aliases import ALIASES, cache_folder, fetch, make_once
from .four_bit import in_four_bits
from .shape import shape_of

__all__ = ["LoadedModel", "fingerprint_of", "load", "load_tokenizer", "pick_device", "pick_dtype", "resolve", "tokenizer_of"]

_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "merges.txt", "vocab.txt"]
_VOLATILE = {"transformers_version", "_name_or_path", "_model_name_or_path"}  # say nothing of what the model computes


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A causal language model with its tokenizer. `fingerprint` names its content: weights, tokenizer and template.

    `adapter` is the kind of an adapter that is still there because it cannot be merged: bottleneck, prefix or prompt.
    """

    model: Any
    tokenizer: Any
    name: str
    path: Path
    fingerprint: str
    device: torch.device
    dtype: torch.dtype
    shape: ModelShape
    adapter: str | None = None
    four_bit: bool = False


def load(
    ref: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    chat_template: Path | None = None,
    merge: bool = True,
    four_bit: bool = False,
) -> LoadedModel:
    """Load a causal language model for inference (`eval()`; a trainer switches it back).

    `ref` is an alias (`smollm2-135m`), a Hugging Face folder, an adapter folder (its base is found from the adapter;
    with `merge` an adapter that can be merged is, without it a `PeftModel` is returned), a `.gguf` file (converted
    once into the cache) or a hub id. `four_bit`: keep the linear layers' weights in 4 bits (for QLoRA). `device`:
    auto, cpu, cuda, cuda:1, mps. `dtype`: auto, float32, bfloat16, float16; auto is bfloat16 where the device computes in it
    natively, else float32. `chat_template`: a Jinja file to use instead of the model's own. Raises `ModelError`.
    """
    from transformers import AutoModelForCausalLM

    on, kind = pick_device(device), pick_dtype(dtype, pick_device(device))
    path = resolve(ref)
    if is_adapter(path):
        if four_bit:
            raise ModelError(
                f"{path}: is an adapter; merge it first (`posttrain models export`), then train with adapter=qlora"
            )
        base = load(base_of(path), device=device, dtype=dtype, chat_template=chat_template, merge=True)
        if base.adapter:
            raise ModelError(f"{path}: its base {base.name} is itself a {base.adapter} adapter, which cannot be merged")
        model = attach(base.model, path)
        kept = unmerged(model)
        model = (merge_adapter(model) if merge and kept is None else model).eval()
        shape = shape_of(model) if kept == "bottleneck" else base.shape
        own = (path / "tokenizer_config.json").is_file()
        tokenizer = load_tokenizer(path, chat_template=chat_template) if own else base.tokenizer
        content = _adapted(base.fingerprint, path, tokenizer)
        return replace(
            base, model=model, tokenizer=tokenizer, name=str(ref), path=path, fingerprint=content, shape=shape, adapter=kept
        )
    check_folder(path)
    tokenizer = load_tokenizer(path, chat_template=chat_template)
    how = in_four_bits(on, kind) if four_bit else {}
    model = load_weights(AutoModelForCausalLM, path, kind, what="a causal language model", **how)
    model = (model if four_bit else model.to(on)).eval()
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        name=str(ref),
        path=path,
        fingerprint=content_fingerprint(path, tokenizer),
        device=on,
        dtype=kind,
        shape=shape_of(type(model.config).from_pretrained(path) if four_bit else model),
        four_bit=four_bit,
    )


def resolve(ref: str | Path) -> Path:
    """Return the folder of a model, fetching or converting it if need be; raises `ModelError` with the nearest alias."""
    if str(ref) in ALIASES:
        return fetch(str(ref))
    path = Path(ref).expanduser()
    if path.suffix == ".gguf":
        return _converted(path)
    if path.is_dir():
        return path
    looks_like_a_path = path.is_absolute() or str(ref).startswith((".", "~")) or len(path.parts) != 2 or path.parent.is_dir()
    if not looks_like_a_path:
        return _from_hub(str(ref))
    raise ModelError(f"unknown model '{ref}': no such folder, and no such alias{did_you_mean(str(ref), ALIASES)}")


def fingerprint_of(ref: str | Path) -> str:
    """Return the fingerprint that `load(ref)` would report, without loading the weights."""
    path = resolve(ref)
    if not is_adapter(path):
        return content_fingerprint(path, load_tokenizer(path))
    return _adapted(fingerprint_of(base_of(path)), path, tokenizer_of(path))


def tokenizer_of(ref: str | Path, *, chat_template: Path | None = None) -> Any:
    """Return the tokenizer that `load(ref)` would, without loading the weights: an adapter's own, or its base's."""
    path = resolve(ref)
    if is_adapter(path) and not (path / "tokenizer_config.json").is_file():
        return tokenizer_of(base_of(path), chat_template=chat_template)
    return load_tokenizer(path, chat_template=chat_template)


def load_tokenizer(path: Path, *, chat_template: Path | None = None) -> Any:
    """Return the tokenizer of a model folder; `chat_template` replaces its template. It always has a padding token."""
    from transformers import AutoTokenizer

    if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise ModelError(f"{path}: not a model folder, or one without its tokenizer (it has no tokenizer.json)")
    try:
        with _quiet():
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds for a folder without a usable tokenizer
        raise ModelError(f"{path}: no usable tokenizer ({_first_line(error)})") from None
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(f"{path}: its tokenizer has no tokenizer.json; save it once with transformers' fast tokenizer")
    if chat_template is not None:
        try:
            tokenizer.chat_template = Path(chat_template).read_text(encoding="utf-8")
        except OSError as error:
            raise ModelError(f"cannot read the chat template {chat_template}: {error.strerror}") from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # only ever masked by position, so sharing an id harms nothing
    return tokenizer


def pick_device(device: str = "auto") -> torch.device:
    """Return the named device, or the best there is; raises `ModelError` when this machine has no such device."""
    if device == "auto":
        cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (index and not index.isdigit()):
        raise ModelError(f"unknown device '{device}': choose auto, cpu, cuda, cuda:N or mps")
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}[kind]
    if int(index or 0) >= count:
        raise ModelError(f"device '{device}' is not available here; use --device auto or --device cpu")
    return torch.device(device)


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the named type, or bfloat16 where the device computes in it natively and float32 elsewhere."""
    named = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype in named:
        return named[dtype]
    if dtype != "auto":
        raise ModelError(f"unknown dtype '{dtype}'{did_you_mean(dtype, [*named, 'auto'])}")
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        able = torch.cpu.get_capabilities() if device.type == "cpu" else {}
        native = any(able.get(feature) for feature in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.bfloat16 if native else torch.float32


def check_folder(path: Path) -> None:
    """Raise `ModelError` unless the folder holds a model whose weights are safetensors."""
    if not (path / "config.json").is_file():
        raise ModelError(f"{path}: not a model folder (it has no config.json and no adapter_config.json)")
    if not any(path.glob("*.safetensors")):
        pickles = [file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in path.glob(pattern)]
        if pickles:
            raise ModelError(
                f"{path}: holds only {pickles[0]}, a pickle, which can run code when it is read; if you trust it, convert "
                "it once: from_pretrained(folder).save_pretrained(folder) with its transformers class"
            )
        raise ModelError(f"{path}: holds no weights (*.safetensors)")


def load_weights(cls: Any, path: Path, dtype: torch.dtype, *, what: str, **how: Any) -> Any:
    """Return the model of a folder, all its weights from the file; raises `ModelError`. `cls` has `from_pretrained`."""
    try:
        with _quiet():
            model, found = cls.from_pretrained(
                path, dtype=dtype, trust_remote_code=False, use_safetensors=True, output_loading_info=True, **how
            )
    except Exception as error:  # an unknown architecture, a truncated file, a shape mismatch, no memory
        raise ModelError(f"{path}: cannot be loaded as {what} ({_first_line(error)})") from None
    if found["missing_keys"] or found["mismatched_keys"]:
        lacking = sorted(map(str, [*found["missing_keys"], *found["mismatched_keys"]]))
        raise ModelError(f"{path}: {len(lacking)} weights are missing or of the wrong shape, among them {lacking[0]}")
    return model


def _converted(file: Path) -> Path:
    from .gguf import convert

    if not file.is_file():
        raise ModelError(f"no such GGUF file: {file}")

    def make(folder: Path) -> None:
        with _quiet():
            convert(file, folder)

    return make_once(cache_folder() / "models" / f"{file.stem}-{_content_hash(file)[:16]}", make)


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    near = did_you_mean(name.rpartition("/")[2].lower(), ALIASES)
    near = near if "did you mean" in near else ""
    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except Exception as error:  # whatever the hub client's transport raises; the first line says which
        raise ModelError(
            f"cannot get '{name}': there is no such folder, and the hub does not have it or cannot be reached "
            f"({_first_line(error)}){near}"
        ) from None


def content_fingerprint(path: Path, tokenizer: Any) -> str:
    """Return a hash of a folder's weights, configuration, tokenizer and template."""
    config = {key: value for key, value in read_json(path / "config.json").items() if key not in _VOLATILE}
    files = [*sorted(path.glob("*.safetensors")), path / "tokenizer.json"]
    return _digest([config, *(_content_hash(file) for file in files if file.is_file()), tokenizer.chat_template])


def _adapted(base: str, path: Path, tokenizer: Any) -> str:
    files = sorted([*path.glob("adapter_*"), *path.glob("bottleneck*")])
    content = _digest([base, *(_content_hash(file) for file in files)])
    return _digest([content, tokenizer.chat_template])


def _digest(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _content_hash(file: Path) -> str:
    """Return a file's SHA-256, remembered for as long as its path, size and time of change stay the same."""
    stat = file.stat()
    key = _digest([str(file.resolve()), stat.st_size, stat.st_mtime_ns])
    kept = cache_folder() / "hashes" / key
    if kept.is_file():
        return kept.read_text()
    found = file_hash(file)
    if stat.st_size > 1 << 20:
        write_atomic(kept, found)
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' warnings and progress bars from the user: what matters is raised."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
