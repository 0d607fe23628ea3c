"""Files that are whole or absent: written under a temporary name, fsynced, renamed. No pickle is ever read."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from asterism.core.errors import StorageError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes `path`'s place, on any failure it is removed.

    What is written at the temporary path may be a file or a folder; a folder already at `path` is replaced whole.
    Raises StorageError, naming `path`, when the disk is full or the place cannot be written.
    """
    path = _named(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with told_as_storage_error(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            put_in_place(temporary, path)
    finally:
        with suppress(OSError):  # whatever went wrong above is the better story
            if temporary.is_dir():
                shutil.rmtree(temporary, ignore_errors=True)
            else:
                temporary.unlink(missing_ok=True)


def vacant(path: str | Path, record: str, kind: str) -> Path:
    """`path`; StorageError unless it is free, an empty folder, or an earlier `kind` of ours, which its file `record` tells."""
    path = _named(path)
    if path.exists() and not (path / record).is_file() and not (path.is_dir() and not any(path.iterdir())):
        mend = f"choose another folder; only an earlier {kind} is replaced"
        raise StorageError("The output place holds something else.", met=path, mend=mend)
    return path


@contextmanager
def alone(path: str | Path) -> Iterator[None]:
    """Be the only process that writes `path`: a locked file beside it, which the system unlocks when a process dies.

    StorageError while another process holds it. Where the file system has no locks nothing is held.
    """
    path = _named(path)
    lock = path.with_name(f".{path.name}.lock")
    with told_as_storage_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT)
    try:
        if not _locked(descriptor, lock):
            mend = "wait for it, or choose another place"
            raise StorageError("Another process is writing there.", met=path, mend=mend)
        try:
            yield
        finally:
            with suppress(OSError):
                lock.unlink()
    finally:
        os.close(descriptor)


def check_writable(path: str | Path) -> None:
    """StorageError where no file could be written at `path`: told before long work that ends there."""
    path = _named(path)
    above = next(folder for folder in path.absolute().parents if folder.exists())
    told = "a folder lies there" if path.is_dir() else ""
    if not (above.is_dir() and os.access(above, os.W_OK | os.X_OK)):
        told = f"{above} cannot be written to"
    if told:
        raise StorageError("A file cannot be written there.", met=f"{path}: {told}", mend="name a file in a folder of yours")


def put_in_place(temporary: Path, path: Path) -> None:
    """Sync a finished file or folder to the disk and give it the name `path` beside it; what was there is replaced whole."""
    _sync(temporary)
    _swap(temporary, path)
    _sync_one(path.parent)


@contextmanager
def told_as_storage_error(path: str | Path) -> Iterator[None]:
    """Turn a failed write (disk full, no permission), however a library words it, into a StorageError that names `path`."""
    try:
        yield
    except Exception as error:
        told = _failed_write(error)
        if told is None:
            raise
        mend = "free some space or choose another place; what was there is untouched"
        raise StorageError("Could not write.", met=f"{path}: {told}", mend=mend) from error


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented UTF-8 JSON, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")


def read_json(path: str | Path) -> Any:
    """Read a JSON file; StorageError when missing or damaged."""
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except FileNotFoundError:
        raise StorageError("A file is missing.", met=path, mend="make it again with the command that writes it") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise StorageError("A file is damaged.", met=f"{path}: {error}", mend="make it again with the command that writes it") from None


def write_tensors(path: str | Path, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as one safetensors file, atomically."""
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        save_file(_apart(tensors), temporary, metadata=dict(metadata or {}))


def read_tensors(path: str | Path) -> dict[str, Any]:
    """Read every tensor of a safetensors file; StorageError when missing, truncated or corrupt."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError:
        raise StorageError("A tensor file is missing.", met=path, mend="make it again with the command that writes it") from None
    except (OSError, SafetensorError) as error:
        raise StorageError("A tensor file is damaged.", met=f"{path}: {error}", mend="copy or make it again") from None


def digest_of(*parts: Any) -> str:
    """SHA-256 over JSON-able parts, in order."""
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def inside(root: str | Path, relative: str) -> Path:
    """`root / relative`, refused when it would leave `root`."""
    root = Path(root).resolve()
    whole = (root / relative).resolve()
    if Path(relative).is_absolute() or not whole.is_relative_to(root):
        raise StorageError("A path leaves its folder.", met=relative, mend=f"name something inside {root}")
    return whole


def _named(path: str | Path) -> Path:
    path = Path(path)
    if not path.name:
        raise StorageError("Not a place to write to.", met=repr(str(path)), mend="name a file or a folder")
    return path


def _failed_write(error: Exception) -> str | None:
    """What failed, if `error` is how Python, safetensors or torch report a write that did not succeed."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    of_torch = isinstance(error, RuntimeError) and "PytorchStreamWriter" in str(error)
    return str(error) if of_torch or type(error).__name__ == "SafetensorError" else None


def _apart(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors on the CPU, contiguous, no two in one storage (safetensors writes each by itself)."""
    met: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        place = plain.untyped_storage().data_ptr()
        apart[name] = plain.clone() if place in met else plain
        met.add(place)
    return apart


def _locked(descriptor: int, lock: Path) -> bool:
    """Lock an open file that `lock` still names: who held it before takes the name away at the end."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(descriptor), os.stat(lock))
    except (BlockingIOError, FileNotFoundError):
        return False
    except OSError:
        return True


def _swap(temporary: Path, path: Path) -> None:
    if path.is_dir():
        old = path.with_name(f".{path.name}.{secrets.token_hex(4)}.old")
        os.rename(path, old)
        try:
            os.rename(temporary, path)
        except BaseException:
            os.rename(old, path)
            raise
        old.unlink() if old.is_symlink() else shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(temporary, path)


def _sync(path: Path) -> None:
    for child in path.rglob("*") if path.is_dir() else ():
        _sync_one(child)
    _sync_one(path)


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
