"""Reading a person's files and writing ours: size limits, clear errors, and never half a file."""

import os
import tempfile
from pathlib import Path

from hetsched.errors import HetschedError

MAX_TEXT_BYTES = 64 * 2**20


def read_text(path: Path, what: str, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """The text of `path`; `what` names it in messages ("cluster file"). HetschedError where it can't be read."""
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise HetschedError(f"{what} {path} is a directory", hint="name a file")
        if size > max_bytes:
            raise HetschedError(
                f"{what} {path} has {size} bytes, more than the {max_bytes} read here", hint="is it the right file?"
            )
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise HetschedError(f"{what} {path} does not exist", hint="check the path") from None
    except UnicodeDecodeError as error:
        raise HetschedError(
            f"{what} {path} is not text (byte {error.start} is not UTF-8)", hint="save it as UTF-8 text"
        ) from None
    except OSError as error:
        raise HetschedError(f"{what} {path} can't be read: {error.strerror}") from None


def write_text(path: Path, text: str) -> None:
    """Write `path` whole or not at all: to a file beside it, then renamed over it. Keeps the mode of a file there."""
    try:
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask()
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise HetschedError(f"{path} can't be written: {error.strerror}", hint="does its folder exist?") from None
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError | UnicodeEncodeError):
            reason = error.strerror if isinstance(error, OSError) else "a name in it is not valid Unicode"
            raise HetschedError(f"{path} can't be written: {reason}") from None
        raise


def make_folder(path: Path) -> None:
    """Make a folder for files to come, where there is none; HetschedError where it can't be, or can't be written to."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise HetschedError(f"{path} can't be a folder to write to: {error.strerror}", hint="name another") from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
