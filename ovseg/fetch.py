"""Download a file from an http or https URL that need not be trusted.

The whole download has one time limit and one size limit. Unless the caller allows it, no host is
contacted whose address is not on the public internet: a URL from a stranger must not reach the
services behind a firewall. The address that was checked is the address that is connected to, so
that a name server cannot give one answer to the check and another to the connection. Connections
are direct: proxies named in the environment are not used, because they would resolve the name
again, out of reach of the check.
"""

from __future__ import annotations

import io
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ovseg.errors import InvalidImageError

if TYPE_CHECKING:
    import http.client
    import ipaddress
    import socket

MAX_BYTES = 64 * 2**20
TIMEOUT = 20.0  # [s], for the whole download with all its redirects
MAX_REDIRECTS = 5

_REDIRECTS = (301, 302, 303, 307, 308)
_URL = re.compile(r"https?://", re.IGNORECASE)


def is_url(text: str) -> bool:
    """Tell whether a text is meant as an http or https URL."""
    return _URL.match(text) is not None


def public_url(url: str) -> str:
    """Name a URL in messages.

    User name, password, query and fragment stay out: each of them may be a secret.
    """
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port is not None else ""
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or ""
    except ValueError:
        return repr(url[: url.index("://") + 3] + "...")
    text = f"{parts.scheme}://{host}{port}{parts.path}"
    return repr(text if len(text) <= 200 else text[:200] + "...")


def fetch(
    url: str,
    *,
    allow_private_urls: bool = False,
    max_bytes: int = MAX_BYTES,
    timeout: float = TIMEOUT,
) -> bytes:
    """Download what an http or https URL points to.

    A user name and password in the URL are sent as basic authentication to that host alone.

    Args:
        url: Address, starting with `http://` or `https://`.
        allow_private_urls: Also contact private, loopback and otherwise not public addresses.
        max_bytes: Largest accepted file [bytes].
        timeout: Time limit for everything together [s].

    Returns:
        The content, at most `max_bytes` long.

    Raises:
        InvalidImageError: The URL is malformed, not allowed, not reachable, too slow or too large,
            or the server answers with anything but a file.
    """
    import http.client

    deadline = _Deadline(time.monotonic() + timeout)
    name = public_url(url)
    try:
        for _ in range(MAX_REDIRECTS + 1):
            target = _parse(url)
            with _request(target, deadline, allow_private_urls) as response:
                if response.status not in _REDIRECTS:
                    return _read(response, max_bytes)
                url = _redirect(url, response)
        raise _RefusedError(f"it redirects more than {MAX_REDIRECTS} times")
    except _RefusedError as refusal:
        raise InvalidImageError(f"cannot download image {name}: {refusal}") from None
    except TimeoutError as error:
        raise InvalidImageError(
            f"cannot download image {name}: it took longer than {timeout:g} seconds; "
            "download the file yourself and pass its path"
        ) from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise InvalidImageError(f"cannot download image {name}: {_reason(error)}") from error


class _RefusedError(Exception):
    """Carries half a sentence to `fetch`, which knows the URL to begin it with."""


class _Deadline:
    def __init__(self, end: float) -> None:
        self._end = end

    def left(self) -> float:
        """Return the time that is left [s].

        Raises:
            TimeoutError: None is left.
        """
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("the time limit has passed")
        return left


@dataclass(frozen=True)
class _Target:
    secure: bool
    host: str  # as resolved and as named in the certificate: ASCII, no brackets, no closing dot
    port: int
    path: str  # with the query, quoted
    headers: dict[str, str]


def _parse(url: str) -> _Target:
    from base64 import b64encode
    from urllib.parse import quote, unquote, urlsplit

    if not is_url(url):
        scheme = url.partition(":")[0][:20]
        raise _RefusedError(f"it redirects to {scheme!r}, and only http and https are followed")
    try:
        parts = urlsplit(url)
        port = parts.port
        host = (parts.hostname or "").rstrip(".")
        host = host if ":" in host else host.encode("idna").decode("ascii")
    except ValueError:  # its text may repeat the password
        raise _RefusedError("the URL is malformed; expected http(s)://host/path") from None
    if not host:
        raise _RefusedError("the URL names no host; expected http(s)://host/path")
    secure = parts.scheme.lower() == "https"
    standard_port = 443 if secure else 80
    reserved = "/%:@!$&'()*+,;=~-._?"
    path = quote(parts.path or "/", safe=reserved) + (
        "?" + quote(parts.query, safe=reserved) if parts.query else ""
    )
    headers = {
        "Host": (f"[{host}]" if ":" in host else host)
        + (f":{port}" if port not in (None, standard_port) else ""),
        "User-Agent": "ovseg (open-vocabulary segmentation library)",
        "Accept": "image/*",
        "Accept-Encoding": "identity",  # a compressed answer could unfold to any size
        "Connection": "close",
    }
    if parts.username is not None:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = "Basic " + b64encode(login.encode()).decode("ascii")
    return _Target(secure, host, standard_port if port is None else port, path, headers)


def _redirect(url: str, response: http.client.HTTPResponse) -> str:
    from urllib.parse import urljoin

    location = response.getheader("Location")
    if not location:
        raise _RefusedError(f"the server answers HTTP {response.status} without saying where to go")
    following = urljoin(url, location)
    if url.lower().startswith("https:") and following.lower().startswith("http:"):
        raise _RefusedError(
            "it redirects from https to http, which anybody on the way could change"
        )
    return following


@contextmanager
def _request(
    target: _Target, deadline: _Deadline, allow_private_urls: bool
) -> Iterator[http.client.HTTPResponse]:
    import http.client

    link = _connect(target, deadline, allow_private_urls)
    try:
        link.settimeout(deadline.left())
        if target.secure:
            import ssl

            context = ssl.create_default_context()
            context.set_alpn_protocols(["http/1.1"])
            link = context.wrap_socket(link, server_hostname=target.host)
        connection: Any = http.client.HTTPConnection(target.host, target.port)
        connection.sock = _TimedSocket(link, deadline)  # http.client opens none of its own then
        connection.request("GET", target.path, headers=target.headers)
        with connection.getresponse() as response:
            yield response
    finally:
        link.close()


def _connect(target: _Target, deadline: _Deadline, allow_private_urls: bool) -> socket.socket:
    import ipaddress
    import socket

    found = _resolve(target, deadline)
    if not allow_private_urls:
        for _, _, _, _, sockaddr in found:
            if not _is_public(ipaddress.ip_address(str(sockaddr[0]).partition("%")[0])):
                raise _RefusedError(
                    "its host is on a private or local network; "
                    "pass allow_private_urls=True if that is intended"
                )
    failure: OSError = OSError("its host has no address")
    for attempt, (family, kind, protocol, _, sockaddr) in enumerate(found):
        try:
            link = socket.socket(family, kind, protocol)
        except OSError as error:  # a kind of address that this machine does not use
            failure = error
            continue
        try:
            link.settimeout(deadline.left() / (len(found) - attempt))  # leave time for the others
            link.connect(sockaddr)
            return link
        except OSError as error:
            link.close()
            failure = error
    raise failure


def _resolve(target: _Target, deadline: _Deadline) -> list[Any]:
    """Look up a host name, in a thread because the system's look-up knows no time limit."""
    import queue
    import socket
    import threading

    answers: queue.SimpleQueue[list[Any] | Exception] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            answers.put(list(socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)))
        except Exception as error:
            answers.put(error)

    threading.Thread(target=look_up, name="ovseg-resolve", daemon=True).start()
    try:
        answer = answers.get(timeout=deadline.left())
    except queue.Empty:
        raise TimeoutError("the name server does not answer") from None
    if isinstance(answer, socket.gaierror):
        raise _RefusedError("its host cannot be found; check the spelling and the network")
    if isinstance(answer, Exception):
        raise answer
    return answer


def _is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Tell whether an address is one host on the public internet.

    An IPv6 address that only carries an IPv4 address is judged by that.
    """
    import ipaddress

    if isinstance(address, ipaddress.IPv4Address):
        return address.is_global and not address.is_multicast and not address.is_reserved
    if address.ipv4_mapped is not None:
        return _is_public(address.ipv4_mapped)
    if address.sixtofour is not None:
        return _is_public(address.sixtofour)
    nat64 = ipaddress.IPv6Network("64:ff9b::/96")  # how IPv6-only networks reach IPv4 hosts
    if address in nat64:
        return _is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return address in ipaddress.IPv6Network("2000::/3") and address.is_global


class _TimedSocket:
    """The part of a socket that http.client needs, with the deadline checked before each read.

    A timeout on the socket alone starts anew with every byte, and a server that sends one byte now
    and then would never reach it.
    """

    def __init__(self, link: socket.socket, deadline: _Deadline) -> None:
        self._link = link
        self._deadline = deadline

    def sendall(self, data: bytes) -> None:
        self._link.settimeout(self._deadline.left())
        self._link.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_TimedReader(self._link, self._deadline), 2**16)

    def close(self) -> None:
        """Do nothing: http.client closes before the answer is read; `_request` closes at last."""


class _TimedReader(io.RawIOBase):
    def __init__(self, link: socket.socket, deadline: _Deadline) -> None:
        self._link = link
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._link.settimeout(self._deadline.left())
        return self._link.recv_into(buffer)


def _read(response: http.client.HTTPResponse, max_bytes: int) -> bytes:
    if response.status != 200:
        from http import HTTPStatus

        known = response.status in HTTPStatus._value2member_map_
        phrase = f" ({HTTPStatus(response.status).phrase})" if known else ""
        raise _RefusedError(f"the server answers HTTP {response.status}{phrase}")
    encoding = response.getheader("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise _RefusedError(
            f"the server sends it compressed as {encoding[:20]!r}, which was not asked for"
        )
    announced = response.length
    too_large = f"it is larger than {max_bytes} bytes; download the file yourself and pass its path"
    if announced is not None and announced > max_bytes:
        raise _RefusedError(too_large)
    content = bytearray()
    while announced is None or len(content) < announced:
        piece = response.read1(2**16)  # what has come, without waiting for all of it
        if not piece:
            break
        content += piece
        if len(content) > max_bytes:
            raise _RefusedError(too_large)
    if announced is not None and len(content) < announced:
        raise _RefusedError(f"the connection ended after {len(content)} of {announced} bytes")
    return bytes(content)


def _reason(error: Exception) -> str:
    import http.client
    import ssl

    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate of its host is not valid: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"no secure connection to its host: {error.reason or 'TLS error'}"
    if isinstance(error, OSError):
        return (error.strerror or str(error)).lower()
    if isinstance(error, http.client.IncompleteRead):
        return "the connection ended before the file did"
    if isinstance(error, http.client.HTTPException):
        return f"the server does not speak HTTP properly ({type(error).__name__})"
    return "the URL is malformed; expected http(s)://host/path"
