"""The Hugging Face Hub: downloading a model, and publishing one with its card."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, TypedDict

from segformer.checkpoints import keras_config
from segformer.checkpoints.errors import CheckpointError, printable
from segformer.checkpoints.layout import CONFIG_FILE, PREPROCESSING_FILE, WEIGHTS_FILE, read_json
from segformer.checkpoints.tensors import READ_SUFFIXES

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

_MODEL_ID = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_FILE_NAME = re.compile(r"\w[\w.-]*")
_WEIGHTS = (WEIGHTS_FILE, f"{WEIGHTS_FILE}.index.json", "pytorch_model.bin")
_INDEX_OF_BIN = "pytorch_model.bin.index.json"
_KERAS_WEIGHTS = ("tf_model.h5", keras_config.WEIGHTS_FILE)
_CARD = "README.md"


class HubOptions(TypedDict, total=False):
    """How to fetch a model from the Hub.

    Attributes:
        revision: Branch, tag or commit.
        token: For private models. Default: the one that ``hf auth login`` stored.
        cache_dir: Default: the cache of all Hub tools.
        local_files_only: Use the cache alone.
    """

    revision: str | None
    token: str | bool | None
    cache_dir: str | Path | None
    local_files_only: bool


class UploadOptions(TypedDict, total=False):
    """How to publish a model on the Hub.

    Attributes:
        private: Make a new repository private.
        token: With the right to write. Default: the one that ``hf auth login`` stored.
        revision: Branch to commit to.
        message: Of the commit.
    """

    private: bool | None
    token: str | bool | None
    revision: str | None
    message: str


def is_model_id(source: str) -> bool:
    """Whether a name can be a Hub id: OWNER/NAME, or OWNER/NAME@REVISION."""
    found = _MODEL_ID.fullmatch(source)
    return found is not None and source[0] != "." and ".." not in source and len(source) < 250


def download(
    model_id: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """Download a model into the Hub's cache, with progress; cached files are used as they are.

    An interrupted download continues where it stopped. All files are of one revision.

    Args:
        model_id: OWNER/NAME, or OWNER/NAME@REVISION.
        revision: Branch, tag or commit. A cached commit is never looked up again.
        token: Of the Hub, for private models. Default: the one that ``hf auth login`` stored.
        cache_dir: Default: the cache of all Hub tools (``HF_HOME``).
        local_files_only: Use the cache alone, as ``HF_HUB_OFFLINE=1`` does for everything.

    Returns:
        The folder of the model in the cache, or its file of weights if it has nothing else.

    Raises:
        CheckpointError: There is no such model, the token does not give access to it, or there is
            no network; the message says what to do.
    """
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    found = _MODEL_ID.fullmatch(model_id)
    if found is None:
        raise CheckpointError(f"{model_id!r} is not a Hub id, which has the form OWNER/NAME")
    name, pinned = found["name"], revision or found["revision"]

    cache_alone = local_files_only

    def fetch(filename: str, at: str | None) -> Path:
        return Path(
            hf_hub_download(
                name,
                filename,
                revision=at,
                token=token,
                cache_dir=cache_dir,
                local_files_only=cache_alone,
                library_name="segformer",
            )
        )

    def fetch_if_there(filename: str, at: str | None) -> Path | None:
        try:
            return fetch(filename, at)
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:
            return None

    def fetch_weights() -> tuple[str, Path] | None:
        nonlocal cache_alone
        unreachable = None
        for filename in (*_WEIGHTS, _INDEX_OF_BIN, *_KERAS_WEIGHTS):
            try:
                path = fetch_if_there(filename, pinned)
            except LocalEntryNotFoundError as error:  # not cached; another kind may be
                unreachable, cache_alone = unreachable or error, True  # the Hub did not answer
                continue
            if path is not None:
                return filename, path
        if unreachable is not None:
            raise unreachable
        files = HfApi(token=token).list_repo_files(name, revision=pinned)
        candidates = [
            file
            for file in files
            if Path(file).suffix in READ_SUFFIXES and not Path(file).name.startswith(".")
        ]
        if len(candidates) > 1:
            raise CheckpointError(
                f"{model_id}: holds several files of weights; download one of them with "
                f"'hf download {name} FILE' and give its path: "
                f"{', '.join(map(printable, candidates[:6]))}"
            )
        return (candidates[0], fetch(candidates[0], pinned)) if candidates else None

    try:
        fetched = fetch_weights()
        if fetched is None:
            raise CheckpointError(
                f"{model_id}: there are no weights that can be read in this model"
            )
        filename, weights = fetched
        inside = PurePosixPath(filename).parent  # some models lie in a subfolder
        folder = weights.parent
        snapshot = weights.parents[len(inside.parts)]
        commit = snapshot.name  # the cache names the folder of a snapshot after its commit
        preset = weights.name == keras_config.WEIGHTS_FILE
        described = keras_config.PRESET_FILES if preset else (PREPROCESSING_FILE,)
        beside = [str(inside / file) for file in (CONFIG_FILE, *described)]
        for file in (*beside, _CARD):
            with suppress(LocalEntryNotFoundError):  # offline, and not in the cache
                fetch_if_there(file, commit)
        if weights.name.endswith(".index.json"):
            shards = read_json(weights).get("weight_map")
            names = {str(shard) for shard in shards.values()} if isinstance(shards, dict) else ()
            for shard in sorted(names):
                if not _FILE_NAME.fullmatch(shard):
                    raise CheckpointError(f"{weights}: {printable(shard)!r} is not a file name")
                fetch(str(inside / shard), commit)
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise CheckpointError(_not_reached(model_id, error, local_files_only)) from None
    except HFValidationError as error:
        raise CheckpointError(f"{model_id!r} is not a Hub id: {error}") from None
    except HfHubHTTPError as error:
        raise CheckpointError(_refused(model_id, pinned, error)) from None
    except (HTTPError, OSError, RuntimeError) as error:
        reason = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
        raise CheckpointError(
            f"{model_id}: the download failed: {printable(reason)}; try again, it continues where "
            "it stopped"
        ) from None
    stated = license(snapshot)
    if stated:
        logger.info(f"{model_id}: license {stated}")
    return (
        weights
        if not (folder / CONFIG_FILE).is_file() and weights.name not in (*_WEIGHTS, *_KERAS_WEIGHTS)
        else folder
    )


def upload(
    folder_writer: Callable[[str], None],
    model_id: str,
    *,
    card: str,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    message: str = "Upload a SegFormer model",
) -> str:
    """Publish a model with its card, as one commit.

    Args:
        folder_writer: Called with a folder; writes the model into it.
        model_id: OWNER/NAME; created if missing.
        card: Text of ``README.md``.
        private: Make a new repository private.
        token: With the right to write. Default: the one that ``hf auth login`` stored.
        revision: Branch to commit to.
        message: Of the commit.

    Returns:
        URL of the commit.

    Raises:
        CheckpointError: The Hub refused, or there is no network.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]

    api = HfApi(token=token, library_name="segformer")
    try:
        api.create_repo(model_id, private=private, exist_ok=True)
        with TemporaryDirectory() as temporary:
            folder_writer(temporary)
            (Path(temporary) / _CARD).write_text(card, encoding="utf-8")
            commit = api.upload_folder(
                repo_id=model_id,
                folder_path=temporary,
                revision=revision,
                commit_message=message,
            )
    except HfHubHTTPError as error:
        raise CheckpointError(_refused(model_id, revision, error)) from None
    except (HTTPError, OSError, RuntimeError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise CheckpointError(f"{model_id}: the upload failed: {reason}; try again") from None
    return str(commit.commit_url)


def license(folder: Path) -> str | None:
    """The license that a model's card states, or None."""
    try:
        with (folder / _CARD).open(encoding="utf-8", errors="replace") as file:
            text = file.read(1 << 16)
    except OSError:
        return None
    if not text.startswith("---"):
        return None
    # Line by line: YAML of unknown origin can expand to any size
    front = dict(re.findall(r"^(license\w*):[ \t]*['\"]?([^\s'\"\[\]&*]+)", text, re.MULTILINE))
    stated = front.get("license")
    if stated == "other":
        stated = front.get("license_name", stated)
    link = front.get("license_link")
    if stated is None:
        return None
    return printable(f"{stated} ({link})" if link else stated)


def _not_reached(model_id: str, error: Exception, local_files_only: bool) -> str:
    from huggingface_hub import constants

    if local_files_only or constants.HF_HUB_OFFLINE:
        switch = "local_files_only" if local_files_only else "HF_HUB_OFFLINE"
        return (
            f"{model_id}: neither a folder here nor in the cache ({constants.HF_HUB_CACHE}), and "
            f"{switch} forbids downloads. Load it once with a connection, or give the path of a "
            "copy"
        )
    cause = error.__cause__ or error
    reason = " ".join(str(cause).split())[:160]
    return (
        f"{model_id}: neither a folder here nor in the cache, and the Hub cannot be reached "
        f"({reason}). Check the connection, or give the path of a copy"
    )


def _refused(model_id: str, revision: str | None, error: HfHubHTTPError) -> str:
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    status = error.response.status_code
    words = error.server_message or " ".join(str(error).split())[:200]
    if isinstance(error, GatedRepoError):
        return (
            f"{model_id}: its owner grants access on request: ask for access on the model's page, "
            "then log in with 'hf auth login'"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{model_id}: this model has no revision {revision!r}"
    if status in (401, 403):
        return (
            f"{model_id}: the Hub refuses ({status}: {printable(words)}). The model is private, "
            "does not exist, or the token is not valid for it: log in with 'hf auth login', or "
            "pass token=..."
        )
    if isinstance(error, RepositoryNotFoundError) or status == 404:
        return (
            f"{model_id}: no such model, neither a folder here nor on the Hub (404). If it is "
            "private, log in with 'hf auth login', or pass token=..."
        )
    return f"{model_id}: the Hub answers {status}: {printable(words)}; try again later"
