"""Where a model comes from: a folder inside the library, an explicit folder elsewhere, or a pinned snapshot from the Hub."""

from __future__ import annotations

import re
from pathlib import Path

from asterism.core.errors import StorageError
from asterism.core.storage import inside

HUB = "hub:"
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
PATTERNS = (
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "adapter_model.safetensors",
    "tokenizer*",
    "vocab.*",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template*",
)
"""What is fetched from the Hub: config, tokenizer and safetensors; never pickles, never code."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
"""Files that hold a vocabulary, the one that says most first."""


def recorded(source: str | Path, root: Path) -> str:
    """How the manifest names a source given by a user: relative when inside `root`, absolute elsewhere, `hub:org/name@commit`.

    A folder that exists (inside `root`, or from the working directory) is meant before a Hub id. A Hub id may carry a
    revision, `org/name@rev`; it is fetched and pinned to its commit.
    """
    text = str(source)
    for folder in (root / text, Path(text).expanduser()):
        if not text.startswith(HUB) and text and folder.is_dir():
            folder, within = folder.resolve(), root.resolve()
            return str(folder.relative_to(within)) if folder.is_relative_to(within) and folder != within else str(folder)
    name, _, revision = text.removeprefix(HUB).partition("@")
    if isinstance(source, Path) or not HUB_ID.fullmatch(name):
        raise StorageError(
            "No model lies there.", met=text or "an empty source", mend="give a folder, or a Hub id such as org/name or org/name@revision"
        )
    return f"{HUB}{name}@{_fetched(name, revision or None).name}"


def is_same(known: str, source: str | Path, root: Path) -> bool:
    """Whether a source given by a user is the one that the manifest names `known`; a Hub id without revision is, at any commit."""
    if not known.startswith(HUB):
        return recorded(source, root) == known
    name, _, revision = str(source).removeprefix(HUB).partition("@")
    kept, _, commit = known.removeprefix(HUB).partition("@")
    return name == kept and (not revision or commit.startswith(revision) or recorded(source, root) == known)


def located(source: str, root: Path) -> Path:
    """The folder of a source as the manifest names it; a Hub snapshot comes from the cache when it is there whole."""
    if source.startswith(HUB):
        name, _, revision = source.removeprefix(HUB).partition("@")
        return _fetched(name, revision or None)
    folder = Path(source) if Path(source).is_absolute() else inside(root, source)
    if not folder.is_dir():
        mend = "put the folder back, or remove the specialist from the library"
        raise StorageError("A model's folder is missing.", met=folder, mend=mend)
    return folder


def folder_at(source: str | Path) -> Path:
    """The folder of what a user names from where they work: itself, or a pinned snapshot from the Hub. StorageError where there is none."""
    here = Path.cwd()
    return located(recorded(source, here), here)


def config_folder(source: str) -> Path:
    """The cached folder of a Hub model's config.json, the only file that is fetched; `org/name` or `org/name@revision`."""
    name, _, revision = source.removeprefix(HUB).partition("@")
    if not HUB_ID.fullmatch(name):
        mend = "give a model's folder, its config.json, or a Hub id such as org/name or org/name@revision"
        raise StorageError("No model lies there.", met=source or "an empty source", mend=mend)
    return _fetched(name, revision or None, ("config.json",))


def pushed(folder: Path, name: str) -> str:
    """Upload a folder to a model repository of the Hub, made if need be; returns its address. StorageError where that fails."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        api = HfApi()
        address = api.create_repo(name, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        met = f"{name}: {(str(error).strip().splitlines() or [type(error).__name__])[0]}"
        mend = f"check the name, the network and `hf auth login`; the merge itself lies in {folder}"
        raise StorageError("The merge could not be uploaded.", met=met, mend=mend) from None
    return str(address)


def _fetched(name: str, revision: str | None, patterns: tuple[str, ...] = PATTERNS) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    pinned = revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision) is not None
    try:
        if pinned:
            try:
                cached = Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns), local_files_only=True))
                if _whole(cached) if patterns == PATTERNS else (cached / "config.json").is_file():
                    return cached
            except LocalEntryNotFoundError:
                pass
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        met = f"{name}{'@' + revision if revision else ''}: {(str(error).strip().splitlines() or [type(error).__name__])[0]}"
        mend = "check the id, the network and `hf auth login`; a local model is given by an existing folder"
        raise StorageError("A model could not be fetched from the Hub, and no such folder exists.", met=met, mend=mend) from None


def _whole(folder: Path) -> bool:
    """Whether a cached snapshot holds all its weights: an interrupted download leaves it without."""
    from asterism.core.errors import AsterismError
    from asterism.models.checkpoints import Checkpoint

    stem = "adapter_model" if (folder / "adapter_config.json").exists() else "model"
    try:
        Checkpoint.open(folder, stem)
    except AsterismError:
        return False
    return stem == "adapter_model" or (folder / "config.json").exists()
