"""A conversation: its messages, the system message, and the settings of requests. Saved as JSON."""

from __future__ import annotations

import base64
import errno
import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llamesh.cli import chat_settings
from llamesh.cli.bounded_file import read_bounded
from llamesh.cli.failure import CommandError, Exit
from llamesh.locations import expanded
from llamesh.private_files import write_private
from llamesh.regular_files import NotReplaceableError, check_replaceable

IMAGES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp", ".gif": "gif", ".bmp": "bmp"}
MAX_IMAGE_BYTES = 10 * 2**20
"""The front door takes media of 14 MiB in base64, which are 10.5 MiB of a file."""
MAX_SAVED_BYTES = 64 * 2**20
"""Maximum size in bytes of a saved conversation."""
_IMAGE_PATH = re.compile(
    r"(?<!\S)((?:~|\.{1,2})?/\S+\.(?:png|jpe?g|webp|gif|bmp))(?=[?!.,;:)]*(?:\s|$))", re.IGNORECASE
)
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass
class Conversation:
    """The messages so far, the system message and the settings of requests."""

    system: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    messages: list[dict[str, Any]] = field(default_factory=list)

    def request(self) -> dict[str, Any]:
        """The body of the next request, without the model."""
        told = [{"role": "system", "content": self.system}] if self.system else []
        return {"stream": True, **chat_settings.fields(self.settings), "messages": [*told, *self.messages]}

    def set(self, name: str, value: str) -> None:
        """Change a setting. CommandError if there is no such setting or it cannot have this value."""
        self.settings[name] = chat_settings.value_of(name, value)

    def save(self, path: Path) -> None:
        """Write the conversation, readable for this user only."""
        saved = {"system": self.system, "settings": self.settings, "messages": self.messages}
        keep(path, encoded(saved, indent=1))

    @classmethod
    def load(cls, path: Path) -> Conversation:
        """Read a conversation that was saved. CommandError if the file holds none."""
        try:
            found = json.loads(read_bounded(path, MAX_SAVED_BYTES))
            messages = [{"role": str(item["role"]), "content": item["content"]} for item in found["messages"]]
            loaded = cls(str(found.get("system", "")), {}, messages)
            for name, value in found.get("settings", {}).items():
                loaded.set(name, chat_settings.typed(value))
        except OSError as error:
            hint = f"relative paths begin in {Path.cwd()}; /save FILE writes a conversation"
            raise CommandError(f"{path}: {error.strerror}", hint=hint, code=Exit.NOT_FOUND) from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise CommandError(
                f"{path} holds no saved conversation", hint="/save FILE writes one", code=Exit.USAGE
            ) from None
        return loaded


def is_there(path: Path) -> bool:
    """Whether a write would replace a file. Paths that cannot be written count as absent."""
    with suppress(OSError, ValueError):
        return path.exists() and not path.is_dir()
    return False


def content(question: str, images: list[Path]) -> str | list[dict[str, Any]]:
    """The content of a message: the text, and images as data: URLs."""
    if not images:
        return question
    parts: list[dict[str, Any]] = [{"type": "text", "text": question}]
    return parts + [{"type": "image_url", "image_url": {"url": _data_url(path)}} for path in images]


def images_of(question: str) -> list[Path]:
    """The image files that a question names by a path that begins with /, ./, ../ or ~/."""
    return [expanded(word) for word in image_paths(question) if _is_file(word)]


def image_paths(question: str) -> list[str]:
    """The words of a question that are paths of images."""
    return list(_IMAGE_PATH.findall(question))


def missing_images(question: str) -> list[str]:
    """The paths of images in a question at which there is no file: they are sent as text."""
    return [word for word in image_paths(question) if not _is_file(word)]


def path_alone(question: str) -> str:
    """A question that is the path of a file and nothing else, and not that of an image that is there; else nothing."""
    word = question.strip()
    if not word.startswith(("/", "./", "../", "~/")) or "\n" in word:
        return ""
    image = _IMAGE_PATH.fullmatch(word) is not None
    return word if image != _is_file(word) else ""


def _is_file(word: str) -> bool:
    # What cannot be a path, such as a name that is too long, is a word of the question.
    with suppress(OSError, ValueError):
        return expanded(word).is_file()
    return False


def _data_url(path: Path) -> str:
    kind = IMAGES.get(path.suffix.lower())
    if kind is None:
        raise CommandError(f"{path} is no image", hint=f"images end with {', '.join(IMAGES)}", code=Exit.USAGE)
    try:
        return f"data:image/{kind};base64,{base64.b64encode(read_bounded(path, MAX_IMAGE_BYTES)).decode()}"
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}", code=Exit.NOT_FOUND) from None


def encoded(value: object, indent: int | None = None) -> bytes:
    """A JSON value in UTF-8, to be sent or saved. A lone surrogate, which stands for a byte that is not text, becomes U+FFFD.

    ValueError for a number that JSON lacks: NaN or an infinity.
    """
    return _SURROGATE.sub("\ufffd", json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False)).encode()


def keep(path: Path, content: bytes) -> None:
    """Write a file that only this user can read, in one step. CommandError if that fails, or if there is anything but a regular file."""
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        check_replaceable(path)
        write_private(path, content)
    except NotReplaceableError as error:
        raise CommandError(str(error), hint=error.remedy, code=Exit.USAGE) from None
    except (OSError, ValueError) as error:
        raise CommandError(f"{path}: {getattr(error, 'strerror', None) or error}", code=Exit.FAILED) from None
