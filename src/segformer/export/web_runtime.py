"""The files of ONNX Runtime Web, which run a model in a browser.

They come from the npm registry once and are then kept in the cache folder. Each file must have the
recorded hash, wherever it comes from.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import tarfile
import urllib.request
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory

from segformer.files import whole_folder
from segformer.prediction.runtimes.cache import cache_folder

logger = logging.getLogger(__name__)

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"

RUNTIME_FILES = {
    "ort.wasm.min.mjs": "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
    "ort-wasm-simd-threaded.mjs": (
        "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b"
    ),
    "ort-wasm-simd-threaded.wasm": (
        "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2"
    ),
    "ort.webgpu.min.mjs": "3dffff71811bc13a3a3d9591c57ca5ee5735b8f5f3eaf789510b02bb040ae3a0",
    "ort-wasm-simd-threaded.asyncify.mjs": (
        "3d1c85995364bb643302fc6fd877a0c3ba5ae72401815e0f24828a53d9191e28"
    ),
    "ort-wasm-simd-threaded.asyncify.wasm": (
        "39f9f0894d478800487ed9f7dbe92618498db320cf55c8e3d89adff8dce658da"
    ),
}
"""SHA-256 of each file, from the folder ``dist`` of the npm package. The first three run on the
processor, the others on the graphics processor."""

_DEFAULT_REGISTRY = "https://registry.npmjs.org"
_TIMEOUT = 600
"""Seconds for the download of the package, 33 MB."""

_ADVICE = (
    f"On a machine with a network, `npm pack {PACKAGE}@{VERSION}` downloads the package; unpack it "
    "and pass its folder package/dist as --runtime-files"
)


def find_runtime_files(folder: str | Path | None = None) -> Path:
    """The folder with the files of ONNX Runtime Web, downloaded first if necessary.

    Args:
        folder: Where the files are; nothing is downloaded then. Default: the cache folder.

    Returns:
        A folder that has `RUNTIME_FILES`, and maybe others.

    Raises:
        ValueError: A file is missing or has other content, or the download failed; the message
            says how to get the files in another way.
    """
    if folder is not None:
        _check(Path(folder))
        return Path(folder)
    cached = cache_folder() / f"{PACKAGE}-{VERSION}"
    try:
        _check(cached)
    except ValueError:
        with TemporaryDirectory() as work, whole_folder(cached) as partial:
            logger.info(f"downloading {PACKAGE} {VERSION}")
            _unpack(_download(Path(work)), partial)
            _check(partial)
    return cached


def _check(folder: Path) -> None:
    """Raise ValueError unless the folder has all files with the recorded content."""
    for name, expected in RUNTIME_FILES.items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{path}: no such file of {PACKAGE} {VERSION}. {_ADVICE}")
        if hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            raise ValueError(f"{path}: not the file of {PACKAGE} {VERSION}. {_ADVICE}")


def _download(work: Path) -> Path:
    """Download the package into a folder; with npm if it is there, which knows its own settings.

    Raises:
        ValueError: It cannot be downloaded.
    """
    archive = work / f"{PACKAGE}-{VERSION}.tgz"
    npm = shutil.which("npm")
    reasons = []
    if npm is not None:
        try:
            words = [npm, "pack", f"{PACKAGE}@{VERSION}", "--ignore-scripts"]
            subprocess.run(
                words, cwd=work, check=True, capture_output=True, text=True, timeout=_TIMEOUT
            )
            if archive.is_file():
                return archive
            reasons.append("npm pack wrote no file")
        except subprocess.CalledProcessError as error:
            reasons.append(f"npm pack: {_last_line(error.stderr)}")
        except (OSError, subprocess.TimeoutExpired) as error:
            reasons.append(f"npm pack: {error}")
    address = f"{_registry().rstrip('/')}/{PACKAGE}/-/{archive.name}"
    try:
        with urllib.request.urlopen(address, timeout=60) as response, archive.open("wb") as file:
            shutil.copyfileobj(response, file)
    except (OSError, ValueError, HTTPException) as error:
        reasons.append(f"{address}: {error}")
        raise ValueError(
            f"{PACKAGE} {VERSION} cannot be downloaded ({'; '.join(reasons)}). {_ADVICE}"
        ) from None
    return archive


def _registry() -> str:
    """The npm registry of the environment or of the user's ``.npmrc``, or the public one."""
    for name in ("npm_config_registry", "NPM_CONFIG_REGISTRY"):
        if os.environ.get(name):
            return os.environ[name]
    settings = Path(os.environ.get("NPM_CONFIG_USERCONFIG") or Path.home() / ".npmrc")
    if settings.is_file():
        for line in settings.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition("=")
            if key.strip() == "registry" and value.strip():
                return value.strip().strip("\"'")
    return _DEFAULT_REGISTRY


def _unpack(archive: Path, folder: Path) -> None:
    """Take the files out of the package; nothing else of it is written.

    Raises:
        ValueError: It is no such package.
    """
    try:
        with tarfile.open(archive) as package:
            for name in RUNTIME_FILES:
                member = package.extractfile(f"package/dist/{name}")
                if member is None:
                    raise KeyError(name)
                with (folder / name).open("wb") as file:
                    shutil.copyfileobj(member, file)
    except (tarfile.TarError, KeyError, EOFError, OSError) as error:
        raise ValueError(
            f"the download of {PACKAGE} {VERSION} is damaged ({error}). {_ADVICE}"
        ) from None


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if "error" in line.lower()]
    return lines[0] if lines else "failed"
