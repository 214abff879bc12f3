"""Names and texts that leave the process: safe as file names, without tokens, without paths.

A slide's name is often an accession number and its folder a patient's; both are kept out of logs
and outputs on request (`--pseudonymize`, `--hide-paths`). Tokens are kept out always.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import PurePath, PurePosixPath

from wsipipe.errors import ConfigError

__all__ = ["TextFilter", "check_slide_id", "redact_tokens", "safe_name", "scrub_paths"]

_TOKENS = (
    # Hugging Face, GitHub, AWS key ids, then whatever stands in an authorization header or query.
    (re.compile(r"\bhf_[A-Za-z0-9]{20,}"), "hf_***"),
    (re.compile(r"\b(gh[pousr]_|github_pat_)[A-Za-z0-9_]{20,}"), r"\1***"),
    (re.compile(r"\b(AKIA|ASIA)[A-Z0-9]{16}\b"), r"\1***"),
    (
        re.compile(
            r"(?i)(authorization['\"]?\s*[:=]\s*['\"]?(?:bearer|basic|token)?\s*)[^\s'\",]+"
        ),
        r"\1***",
    ),
    (
        re.compile(r"(?i)([?&](?:x-amz-[a-z-]+|sig|signature|token|access_token|key)=)[^&\s'\"]+"),
        r"\1***",
    ),
    (re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://)[^/\s:@]+:[^/\s@]+@"), r"\1***@"),
)
# An absolute path (two parts at least) or a drive or share of another system.
_PATH = re.compile(r"(?<![\w:/.])(?:/[^/\s'\":,;]+){2,}/?|\b[A-Za-z]:\\[^\s'\",;]+|\\\\[^\s'\",;]+")
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f]")


def safe_name(text: str, *, limit: int = 80) -> str:
    """A file name for any `text`: letters, digits, `.`, `-`, `_`; different texts stay different.

    >>> safe_name("case1_slide2")
    'case1_slide2'
    """
    short = re.sub(r"[^A-Za-z0-9._-]", "_", text)[:limit].lstrip(".-") or "_"
    if short == text:
        return short
    return f"{short}-{hashlib.sha256(text.encode(errors='surrogateescape')).hexdigest()[:12]}"


def check_slide_id(slide_id: str) -> str:
    """`slide_id` itself, if files below one folder can be named by it.

    Raises:
        ConfigError: It is empty, absolute, climbs out by `..`, or holds control characters (a
            newline in a name forges lines of a log).
    """
    parts = slide_id.split("/")
    if (
        not slide_id
        or slide_id.startswith("/")
        or any(part in ("", ".", "..") for part in parts)
        or _FORBIDDEN.search(slide_id)
    ):
        raise ConfigError(
            f"{slide_id!r} cannot name a slide.",
            "Give a 'slide_id' in a manifest: a relative name without '..' or control characters.",
        )
    return slide_id


def redact_tokens(text: str) -> str:
    """`text` without access tokens, passwords in URLs and signed query strings.

    >>> redact_tokens("Authorization: Bearer abc.def")
    'Authorization: Bearer ***'
    """
    for pattern, replacement in _TOKENS:
        text = pattern.sub(replacement, text)
    return text


def scrub_paths(text: str) -> str:
    """`text` with folders removed from absolute paths: only the last part stays.

    >>> scrub_paths("/data/DOE_JANE/a.svs: cut short")
    '…/a.svs: cut short'
    """

    def last_part(match: re.Match[str]) -> str:
        return "…/" + re.split(r"[/\\]", match[0].rstrip("/\\"))[-1]

    return _PATH.sub(last_part, text)


class TextFilter:
    """What every text passes before it is written or shown: tokens go always, paths on request.

    Args:
        hide_paths: Of absolute paths only the last part stays.
        hidden: Slide id -> (path, name) that give way to the id, for ids that are pseudonyms. Of
            absolute paths nothing stays then, but names of Python files in tracebacks.
    """

    def __init__(
        self, *, hide_paths: bool = False, hidden: Mapping[str, tuple[str, str]] | None = None
    ) -> None:
        self._hide_paths = hide_paths
        self._hidden = hidden or {}

    def __call__(self, text: str) -> str:
        """`text` that is about no slide in particular."""
        text = redact_tokens(text)
        if self._hidden:
            return _PATH.sub(_only_code, text)
        return scrub_paths(text) if self._hide_paths else text

    def about(self, slide_id: object) -> Callable[[str], str]:
        """The filter for texts about one slide."""
        found = self._hidden.get(slide_id) if isinstance(slide_id, str) else None
        if found is None:
            return self
        names = _name_pattern(*found)
        return lambda text: self(names.sub(str(slide_id), text))

    def path_of(self, slide_id: str, path: str) -> str:
        """What stands for a slide's path in records and tables."""
        return slide_id if slide_id in self._hidden else self(path)


def _only_code(match: re.Match[str]) -> str:
    last = re.split(r"[/\\]", match[0].rstrip("/\\"))[-1]
    return f"…/{last}" if last.endswith(".py") else "…"


def _name_pattern(path: str, name: str) -> re.Pattern[str]:
    """Everything that stands for a slide in messages: its path, its folder, its file's name, its
    id, each as written, as `repr` escapes it and in both Unicode forms."""
    bare = path.partition("://")[2] or path
    pure: PurePath = PurePosixPath(bare)
    folders = [str(parent) for parent in pure.parents if len(parent.parts) > 1]
    stem = pure.name.split(".")[0]
    texts = {path, bare, *folders[:2], pure.name, name, *name.split("/")}
    # A stem of a letter or two would be found in every other word.
    texts |= {text for text in (stem, pure.stem) if len(text) > 3}
    texts |= {unicodedata.normalize(form, text) for form in ("NFC", "NFD") for text in texts}
    texts |= {repr(text)[1:-1] for text in texts}
    ordered = sorted((t for t in texts if t not in ("", ".", "..")), key=len, reverse=True)
    return re.compile(
        "|".join(rf"(?<!\w){re.escape(text)}(?!\w)" for text in ordered), re.IGNORECASE
    )
