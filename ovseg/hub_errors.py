"""What it means when the Hugging Face Hub does not give a file, and what to do about it."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovseg.errors import WeightsError

PATIENCE = 2.0  # [s], for finding out whether the Hub answers at all
_CONNECT = 0.9  # [s], for the first address of a family: where IPv6 leads nowhere, IPv4 gets its turn within PATIENCE
_ELSEWHERE = "set HF_HUB_CACHE or cache_dir to another disk"


@dataclass(frozen=True)
class Wanted:
    """What is asked of the Hub, as messages speak of it.

    Attributes:
        repo: `owner/name`.
        filename: File in it; "" for the list of its files.
        revision: Branch, tag or commit.
        cache: Folder of the cache.
        endpoint: Address of the Hub.
        access: What the card says about gated weights.
    """

    repo: str
    filename: str
    revision: str
    cache: Path
    endpoint: str
    access: str = ""

    def __str__(self) -> str:
        """Name the file."""
        return f"{self.filename} of {self.repo}" if self.filename else f"the list of files of {self.repo}"


def _and_access(wanted: Wanted) -> str:
    return f" {wanted.access}" if wanted.access else ""


def not_cached(wanted: Wanted) -> WeightsError:
    """Make the error for offline mode."""
    return WeightsError(
        f"Downloads are switched off (local_files_only or HF_HUB_OFFLINE), and the cache {wanted.cache} does not hold {wanted}. "
        f"Load the model once with downloads, or pass a folder that holds it.{_and_access(wanted)}"
    )


def explain(error: Exception, wanted: Wanted) -> WeightsError:
    """Make the error that says what an exception of huggingface_hub, of its HTTP client or of the system means."""
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        return explain(error.__cause__, wanted)
    if isinstance(error, errors.HfHubHTTPError):
        return WeightsError(_answer(error, wanted) + _and_access(wanted))
    if isinstance(error, errors.LocalTokenNotFoundError):
        return WeightsError("A token is asked for (token=True) and there is none: run `hf auth login`, or set HF_TOKEN.")
    if isinstance(error, errors.HFValidationError):
        return WeightsError(f"{wanted.repo!r} is not the name of a repository; expected owner/name.")
    if isinstance(error, errors.FileMetadataError):
        return WeightsError(f"{wanted.endpoint} does not answer like the Hugging Face Hub. Check HF_ENDPOINT and the proxy settings.")
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT):
        return WeightsError(f"No space is left in {wanted.cache} for {wanted}. Free some, or {_ELSEWHERE}.")
    if number in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        return WeightsError(f"{wanted} cannot be stored in {wanted.cache} ({line(error)}). Make it writable, or {_ELSEWHERE}.")
    if isinstance(error, OSError) and "onsistency check" in str(error):
        return WeightsError(f"{wanted} came incomplete: the connection ended before the file did. Try again.")
    return WeightsError(
        f"Cannot download {wanted}: {wanted.endpoint} cannot be reached ({line(error)}). Check the network and the proxy settings, or copy "
        f"the model to this machine and pass its folder; the model 'mini' needs no download.{_and_access(wanted)}"
    )


def _answer(error: Any, wanted: Wanted) -> str:
    """Say what an HTTP status means."""
    from huggingface_hub import errors

    page = f"https://huggingface.co/{wanted.repo}"
    status = error.response.status_code
    if isinstance(error, errors.GatedRepoError):
        return f"{wanted.repo} is gated: ask for access at {page}, then run `hf auth login` or set HF_TOKEN to a token of that account."
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"There is no repository {wanted.repo} on the Hub, or it is private. Check the name; for a private one run `hf auth login` "
            "or set HF_TOKEN."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{wanted.repo} has no revision {wanted.revision!r}. Its commits are listed at {page}/commits."
    if isinstance(error, errors.EntryNotFoundError):
        return f"{wanted.repo} has no file {wanted.filename!r} at revision {wanted.revision!r}. See {page}/tree/{wanted.revision}."
    if status == 401:
        return f"The Hub refuses the token for {wanted.repo}: run `hf auth login` again, or correct HF_TOKEN."
    if status == 403:
        return (
            f"The Hub forbids access to {wanted.repo}: ask for access at {page}, then run `hf auth login` or set HF_TOKEN to a token that "
            "may read gated repositories."
        )
    if status == 429:
        return "The Hub has had too many requests from here. Wait some minutes, or run `hf auth login`, which raises the limit."
    return f"The Hub answers HTTP {status} for {wanted}. Try again later."


def line(error: Exception) -> str:
    """Return the first line of an exception's text."""
    text = (error.strerror if isinstance(error, OSError) else "") or str(error)
    return text.strip().partition("\n")[0].rstrip(".") or type(error).__name__


def unreachable(endpoint: str) -> OSError | None:
    """Find out within PATIENCE why an endpoint, or the proxy before it, takes no connection; None if it does.

    huggingface_hub would try six times with pauses of up to 8 s. A thread, because a name lookup knows no time limit.
    """
    import socket
    import threading
    from urllib.parse import urlsplit
    from urllib.request import getproxies, proxy_bypass

    try:
        parts = urlsplit(endpoint)
        proxies = getproxies()
        proxy = proxies.get(parts.scheme) or proxies.get("all")
        if proxy and not proxy_bypass(parts.hostname or ""):
            parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        host, port = parts.hostname or "", parts.port or {"http": 80, "https": 443}.get(parts.scheme, 1080)
    except ValueError as error:
        return OSError(f"malformed address: {error}")
    outcome: list[OSError | None] = []

    def connect() -> None:
        reason: OSError = OSError("no address")
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            outcome.append(OSError(f"the name {host!r} cannot be looked up: {line(error)}"))
            return
        first: dict[int, str] = {}
        for family, _, _, _, address in found:
            first.setdefault(family, str(address[0]))
        for name in first.values():
            try:
                socket.create_connection((name, port), timeout=_CONNECT).close()
            except OSError as error:
                reason = error
            else:
                outcome.append(None)
                return
        outcome.append(reason)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return outcome[0] if outcome else TimeoutError(f"no answer within {PATIENCE:g} s")
