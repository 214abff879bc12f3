"""Names and texts that leave the process: safe as file names, without tokens, without paths.

A slide's name is often an accession number and its folder a patient's; both are kept out of logs
and outputs on request. Tokens are kept out always.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable
from pathlib import Path

from wsipipe.errors import ConfigError

__all__ = ["Pseudonymizer", "check_slide_id", "redact_tokens", "safe_name", "scrub_paths"]

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


class Pseudonymizer:
    """Replaces slide ids by keyed hashes; who has the key file can repeat it, nobody can undo it.

    Args:
        key_file: At least 16 bytes, kept outside the output folder. Made by
            `head -c 32 /dev/urandom > KEYFILE`.

    Raises:
        ConfigError: The key is missing or too short.
    """

    def __init__(self, key_file: str | Path) -> None:
        try:
            self._key = Path(key_file).read_bytes().strip()
        except OSError as error:
            raise ConfigError(
                f"{key_file}: the key file cannot be read ({error.strerror}).",
                "Make one: head -c 32 /dev/urandom > KEYFILE",
            ) from error
        if len(self._key) < 16:
            raise ConfigError(
                f"{key_file}: a key of {len(self._key)} bytes is too short (16 are the least).",
                "Make one: head -c 32 /dev/urandom > KEYFILE",
            )

    def __call__(self, slide_id: str) -> str:
        """The pseudonym: `p` and 20 hex digits of HMAC-SHA256 (80 bits: no collisions in practice).

        The whole id is hashed, folders included, so nothing of a name remains.
        """
        digest = hmac.new(self._key, slide_id.encode(errors="surrogateescape"), "sha256")
        return f"p{digest.hexdigest()[:20]}"


def text_filter(*, hide_paths: bool = False) -> Callable[[str], str]:
    """What every text passes before it is written to a record: tokens go, folders on request."""

    def clean(text: str) -> str:
        text = redact_tokens(text)
        return scrub_paths(text) if hide_paths else text

    return clean
