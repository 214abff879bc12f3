"""Weights: where they are kept, which are here, whether the hub can be reached."""

from __future__ import annotations

import http.client
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator

from wsipipe import weights
from wsipipe.doctor.finding import Finding, human_bytes
from wsipipe.doctor.storage import nearest_folder

_GROUP = "weights"
_TIMEOUT_S = 3.0


def cache(*, quick: bool) -> Iterator[Finding]:
    """The folder that weights are kept in, and which encoders it holds."""
    folder = weights.hub_cache()
    near = nearest_folder(folder)
    if not os.access(near, os.W_OK | os.X_OK):
        yield Finding(
            _GROUP, "weights folder", "warning", f"{folder} cannot be written",
            "export HF_HOME=/a/folder/of/yours",
        )  # fmt: skip
    else:
        import shutil

        free = human_bytes(shutil.disk_usage(near).free)
        yield Finding(_GROUP, "weights folder", "good", f"{folder}, {free} free")
    if quick:
        return
    from wsipipe.encoders import list_encoders

    here = [card.name for card in list_encoders() if card.params == 0 or _cached(card)]
    yield Finding(
        _GROUP, "encoders here", "good", ", ".join(here),
        "" if len(here) > 1 else "`wsipipe encoders` lists all, `wsipipe pull NAME` brings one.",
    )  # fmt: skip


def _cached(card: object) -> bool:
    from wsipipe.encoders.sourcing import source_of

    source = source_of(card)  # type: ignore[arg-type]
    return source.repo is not None and weights.cached(source) is not None


def access(*, quick: bool) -> Iterator[Finding]:
    """Whether the hub answers; asked once, for a few seconds at most."""
    endpoint = weights.endpoint()
    if weights.offline():
        yield Finding(_GROUP, "hub", "note", "HF_HUB_OFFLINE is set: only weights that are here")
        return
    if quick:
        return
    problem = _ask(endpoint)
    if problem:
        yield Finding(
            _GROUP, "hub", "note", f"{endpoint} does not answer ({problem})",
            "Without network: `wsipipe pull --bundle` on another machine, `wsipipe pull --from` "
            "here. Behind a proxy: export HTTPS_PROXY.",
        )  # fmt: skip
    else:
        yield Finding(_GROUP, "hub", "good", f"{endpoint} answers")


def _ask(endpoint: str) -> str:
    """Why the hub cannot be reached, or ""."""
    answer = ["no answer in time"]

    def ask() -> None:
        try:
            request = urllib.request.Request(endpoint, method="HEAD")
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S):
                answer[0] = ""
        except urllib.error.HTTPError:
            answer[0] = ""  # It answers; that this page is refused does not matter.
        except urllib.error.URLError as error:
            answer[0] = str(error.reason)
        except (OSError, ValueError, http.client.HTTPException) as error:
            answer[0] = str(error) or type(error).__name__

    # Looking up a name has no timeout of its own: a thread that is left behind has.
    thread = threading.Thread(target=ask, daemon=True, name="doctor-hub")
    thread.start()
    thread.join(_TIMEOUT_S + 1)
    return answer[0]
