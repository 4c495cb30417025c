"""Downloads, against servers on this machine; nothing here leaves it."""

from __future__ import annotations

import base64
import io
import ipaddress
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ovseg import fetch as fetch_module
from ovseg.errors import InvalidImageError
from ovseg.fetch import MAX_BYTES, MAX_REDIRECTS, TIMEOUT, fetch, is_url, public_url
from ovseg.image import load_image

PICTURE = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


def picture_file() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PICTURE).save(buffer, "PNG")
    return buffer.getvalue()


class Handler(BaseHTTPRequestHandler):
    """Answers by the first part of the path; the server collects the headers of all requests."""

    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self.server.requests.append((self.path, dict(self.headers.items())))
        action, _, rest = self.path.lstrip("/").partition("/")
        try:
            getattr(self, "answer_" + action.partition("?")[0].partition(".")[0])(rest)
        except (ConnectionError, ssl.SSLError):
            pass  # the client has had enough, as some tests want

    def answer(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content_Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def answer_picture(self, rest: str) -> None:
        self.answer(200, picture_file())

    def answer_page(self, rest: str) -> None:
        self.answer(200, b"<!DOCTYPE html><p>Log in first</p>", Content_Type="image/png")

    def answer_status(self, rest: str) -> None:
        self.answer(int(rest), b"secret details")

    def answer_redirect(self, rest: str) -> None:
        self.answer(302, b"moved", Location=rest.replace("!", ":"))

    def answer_nowhere(self, rest: str) -> None:
        self.answer(302)

    def answer_again(self, rest: str) -> None:
        left = int(rest)
        self.answer(307, Location=f"/again/{left - 1}" if left > 1 else "/picture.png")

    def answer_announced(self, rest: str) -> None:
        self.answer(200, Content_Length=rest)

    def answer_until_closed(self, rest: str) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"x" * int(rest))
        self.close_connection = True

    def answer_chunked(self, rest: str) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        content = picture_file() if rest == "picture" else b"x" * int(rest)
        for start in range(0, len(content), 100):
            piece = content[start : start + 100]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    def answer_cut(self, rest: str) -> None:
        if rest == "chunked":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"64\r\nonly this")
        else:
            self.answer(200, b"only this", Content_Length="100")
        self.close_connection = True

    def answer_left_open(self, rest: str) -> None:
        """Ignore the wish to close: the client has to know by itself when it has everything."""
        self.answer_picture(rest)
        self.wfile.flush()
        self.server.closing.wait(30)

    def answer_gzip(self, rest: str) -> None:
        self.answer(200, b"\x1f\x8b", Content_Encoding="gzip")

    def answer_drip(self, rest: str) -> None:
        """Send something for ever, byte by byte, so that no single wait is long."""
        if rest != "headers":
            self.send_response(200)
            self.end_headers()
        while not self.server.closing.wait(0.02):
            self.wfile.write(b"x")
            self.wfile.flush()

    def answer_silence(self, rest: str) -> None:
        self.server.closing.wait(30)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.closing = threading.Event()
        self.port = self.server_address[1]
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_side=True)
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def handle_error(self, *arguments: object) -> None:
        """Say nothing: broken connections are what is tested."""

    def url(self, path: str, host: str = "127.0.0.1", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}/{path}"

    def stop(self) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.stop()


def names_resolve_to(
    monkeypatch: pytest.MonkeyPatch, *addresses: str, names: tuple[str, ...] = ("images.example",)
) -> list[str]:
    """Replace the name server; returns the list of names it will have been asked for."""
    asked: list[str] = []
    real = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, *arguments: object, **options: object) -> object:
        if host not in names:
            return real(host, port, *arguments, **options)  # type: ignore[arg-type]
        asked.append(host)
        return [
            (
                socket.AF_INET6 if ":" in address else socket.AF_INET,
                socket.SOCK_STREAM,
                6,
                "",
                (address, port, 0, 0) if ":" in address else (address, port),
            )
            for address in addresses
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


def only_this_machine_is_public(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_module, "_is_public", lambda address: str(address) == "127.0.0.1")


# What is downloaded


def test_image_from_a_url(server: Server) -> None:
    result = load_image(server.url("picture.png"), allow_private_urls=True)
    np.testing.assert_array_equal(result, PICTURE)
    assert result.flags.c_contiguous


def test_scheme_in_capitals(server: Server) -> None:
    url = server.url("picture.png").replace("http", "HTTP")
    np.testing.assert_array_equal(load_image(url, allow_private_urls=True), PICTURE)


def test_chunked_answer(server: Server) -> None:
    result = load_image(server.url("chunked/picture"), allow_private_urls=True)
    np.testing.assert_array_equal(result, PICTURE)


def test_server_that_keeps_the_connection_open(server: Server) -> None:
    assert fetch(server.url("left_open"), allow_private_urls=True, timeout=5) == picture_file()


def test_request_headers(server: Server) -> None:
    fetch(server.url("picture.png?a=1&b=%20c#part"), allow_private_urls=True)
    path, headers = server.requests[0]
    assert path == "/picture.png?a=1&b=%20c"
    assert headers["Host"] == f"127.0.0.1:{server.port}"
    assert headers["Accept-Encoding"] == "identity"
    assert "ovseg" in headers["User-Agent"]
    assert "Authorization" not in headers


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("picture/a b.png", "/picture/a%20b.png"),
        ("picture/ä?ö", "/picture/%C3%A4?%C3%B6"),
        ("picture/%C3%A4", "/picture/%C3%A4"),
        ("picture/a\r\nHost: evil", "/picture/aHost:%20evil"),
        ("picture/\x00\x7f", "/picture/%00%7F"),
        ("picture/[1]|^", "/picture/%5B1%5D%7C%5E"),
    ],
)
def test_paths_are_quoted(server: Server, path: str, sent: str) -> None:
    fetch(server.url(path), allow_private_urls=True)
    assert server.requests[0][0] == sent


def test_page_instead_of_an_image(server: Server) -> None:
    with pytest.raises(InvalidImageError, match="page': it is an HTML page"):
        load_image(server.url("page"), allow_private_urls=True)


@pytest.mark.parametrize(
    ("status", "text"),
    [(404, "HTTP 404 \\(Not Found\\)"), (500, "HTTP 500"), (204, "HTTP 204"), (799, "HTTP 799$")],
)
def test_other_answers(server: Server, status: int, text: str) -> None:
    with pytest.raises(InvalidImageError, match=text) as caught:
        fetch(server.url(f"status/{status}"), allow_private_urls=True)
    assert "secret" not in str(caught.value)


def test_compressed_answer_is_refused(server: Server) -> None:
    with pytest.raises(InvalidImageError, match="compressed as 'gzip'"):
        fetch(server.url("gzip"), allow_private_urls=True)


def test_server_that_is_not_there() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(InvalidImageError, match="refused") as caught:
        fetch(f"http://127.0.0.1:{port}/a.png", allow_private_urls=True)
    assert isinstance(caught.value.__cause__, OSError)


def test_host_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*arguments: object, **options: object) -> object:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(InvalidImageError, match="its host cannot be found"):
        load_image("https://no-such-host.example/a.png")


@pytest.mark.parametrize("greeting", [b"SSH-2.0-OpenSSH\r\n", b"", b"HTTP/1.1 banana\r\n\r\n"])
def test_server_of_another_protocol(greeting: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet() -> None:
            link, _ = listener.accept()
            with link:
                link.recv(4096)
                link.sendall(greeting)

        threading.Thread(target=greet, daemon=True).start()
        with pytest.raises(InvalidImageError, match="not speak HTTP properly|without response"):
            fetch(f"http://127.0.0.1:{listener.getsockname()[1]}/a", allow_private_urls=True)


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "http:///a.png",
        "http://?a",
        "https://[::1/a.png",
        "http://host:port/a.png",
        "http://host:99999/a.png",
        "http://a..b/c.png",
        "http://" + "a" * 70 + ".example/c.png",
        "http://\x00/a.png",
        "http://[not-an-address]/a.png",
    ],
)
def test_malformed_urls(url: str) -> None:
    with pytest.raises(InvalidImageError, match="cannot download image"):
        load_image(url)


@given(st.text(max_size=30))
@settings(max_examples=100, deadline=None)
def test_any_url_gives_an_image_error(tail: str) -> None:
    with pytest.MonkeyPatch.context() as patch:

        def getaddrinfo(*arguments: object, **options: object) -> object:
            raise socket.gaierror(-2, "Name or service not known")

        patch.setattr(socket, "getaddrinfo", getaddrinfo)
        with pytest.raises(InvalidImageError):
            load_image("http://" + tail)


# Limits


def test_default_limits() -> None:
    assert MAX_BYTES == 64 * 2**20
    assert TIMEOUT == 20
    assert MAX_REDIRECTS == 5


def test_announced_size_is_checked_before_reading(server: Server) -> None:
    with pytest.raises(InvalidImageError, match="larger than 67108864 bytes"):
        fetch(server.url(f"announced/{2**26 + 1}"), allow_private_urls=True)


@pytest.mark.parametrize("action", ["until_closed", "chunked"])
def test_size_is_checked_while_reading(server: Server, action: str) -> None:
    assert len(fetch(server.url(f"{action}/5000"), allow_private_urls=True, max_bytes=5000)) == 5000
    with pytest.raises(InvalidImageError, match="larger than 4999 bytes"):
        fetch(server.url(f"{action}/5000"), allow_private_urls=True, max_bytes=4999)


def test_endless_answer_stops_at_the_limit(server: Server) -> None:
    with pytest.raises(InvalidImageError, match="larger than 5 bytes"):
        fetch(server.url("drip/body"), allow_private_urls=True, max_bytes=5, timeout=30)


@pytest.mark.parametrize("kind", ["length", "chunked"])
def test_answer_that_breaks_off(server: Server, kind: str) -> None:
    with pytest.raises(InvalidImageError, match="the connection ended"):
        fetch(server.url(f"cut/{kind}"), allow_private_urls=True)


@pytest.mark.parametrize("path", ["silence", "drip/headers", "drip/body"])
def test_slow_servers_run_out_of_time(server: Server, path: str) -> None:
    with pytest.raises(InvalidImageError, match="longer than 0.3 seconds") as caught:
        fetch(server.url(path), allow_private_urls=True, timeout=0.3)
    assert isinstance(caught.value.__cause__, TimeoutError)


def test_slow_name_server_runs_out_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    woken = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: woken.wait(30))
    with pytest.raises(InvalidImageError, match="longer than 0.1 seconds"):
        fetch("http://images.example/a.png", timeout=0.1)
    woken.set()


def test_redirects_share_one_time_limit(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + 8 * len(server.requests))
    with pytest.raises(InvalidImageError, match="longer than 20 seconds"):
        fetch(server.url("again/4"), allow_private_urls=True)


def test_redirects_are_followed(server: Server) -> None:
    result = load_image(server.url(f"again/{MAX_REDIRECTS}"), allow_private_urls=True)
    np.testing.assert_array_equal(result, PICTURE)
    assert len(server.requests) == MAX_REDIRECTS + 1


def test_redirects_are_limited(server: Server) -> None:
    with pytest.raises(InvalidImageError, match="redirects more than 5 times"):
        fetch(server.url(f"again/{MAX_REDIRECTS + 1}"), allow_private_urls=True)
    assert len(server.requests) == MAX_REDIRECTS + 1


@pytest.mark.parametrize("target", ["ftp!//example.com/a", "file!///etc/passwd", "data!,x"])
def test_redirects_stay_on_http(server: Server, target: str) -> None:
    with pytest.raises(InvalidImageError, match="only http and https are followed"):
        fetch(server.url("redirect/" + target), allow_private_urls=True)


def test_redirect_without_a_target(server: Server) -> None:
    with pytest.raises(InvalidImageError, match="without saying where to go"):
        fetch(server.url("nowhere"), allow_private_urls=True)


# Private addresses


def test_this_machine_is_refused_by_default(server: Server) -> None:
    for host in ("127.0.0.1", "localhost", "2130706433", "0x7f000001", "0177.0.0.1", "127.1"):
        with pytest.raises(InvalidImageError) as caught:
            load_image(server.url("picture.png", host))
        # Not every system takes the odd spellings for addresses.
        odd = host not in ("127.0.0.1", "localhost")
        assert "pass allow_private_urls=True" in str(caught.value) or (
            odd and "cannot be found" in str(caught.value)
        )
    assert server.requests == []


def test_full_width_digits_are_digits(server: Server) -> None:
    with pytest.raises(InvalidImageError, match="private or local network"):
        load_image(server.url("picture.png", "１２７。０。０。１"))
    assert server.requests == []


@pytest.mark.parametrize(
    "address",
    [
        *(
            "127.0.0.1",
            "127.255.255.254",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
        ),
        *(
            "0.0.0.0",
            "0.1.2.3",
            "100.64.0.1",
            "192.0.0.1",
            "192.0.2.1",
            "198.18.0.1",
            "198.51.100.1",
        ),
        *("203.0.113.5", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255"),
        *(
            "::",
            "::1",
            "fe80::1",
            "fec0::1",
            "fc00::1",
            "fd12::1",
            "ff02::1",
            "2001:db8::1",
            "100::1",
        ),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1"),
        *(
            "64:ff9b::127.0.0.1",
            "64:ff9b::a00:1",
            "64:ff9b:1::1",
            "2002:7f00:1::",
            "2002:c0a8:101::1",
        ),
        *("2001:0:4136:e378:8000:63bf:3fff:fdd2", "4000::1"),
    ],
)
def test_addresses_that_are_not_public(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    assert not fetch_module._is_public(ipaddress.ip_address(address))
    names_resolve_to(monkeypatch, address)
    with pytest.raises(InvalidImageError, match="private or local network") as caught:
        load_image("http://images.example/a.png")
    assert address not in str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        *("8.8.8.8", "1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "::ffff:8.8.8.8"),
        *("64:ff9b::8.8.8.8", "2002:808:808::1"),
    ],
)
def test_public_addresses(address: str) -> None:
    assert fetch_module._is_public(ipaddress.ip_address(address))


def test_one_private_address_among_public_ones_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    names_resolve_to(monkeypatch, "8.8.8.8", "10.0.0.1")
    with pytest.raises(InvalidImageError, match="private or local network"):
        load_image("http://images.example/a.png")


def test_scope_of_link_local_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    names_resolve_to(monkeypatch, "fe80::1%eth0")
    with pytest.raises(InvalidImageError, match="private or local network"):
        load_image("http://images.example/a.png")


def test_redirect_to_a_private_address(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    only_this_machine_is_public(monkeypatch)
    np.testing.assert_array_equal(load_image(server.url("picture.png")), PICTURE)
    with pytest.raises(InvalidImageError, match="private or local network"):
        load_image(server.url("redirect/http!//127.0.0.2/picture.png"))
    with pytest.raises(InvalidImageError, match="private or local network"):
        load_image(server.url("redirect/http!//169.254.169.254/latest/meta-data"))


def test_the_checked_address_is_the_one_connected_to(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_this_machine_is_public(monkeypatch)
    asked = names_resolve_to(monkeypatch, "127.0.0.1")
    np.testing.assert_array_equal(load_image(server.url("picture.png", "images.example")), PICTURE)
    assert asked == ["images.example"]  # one look-up, so there is no second answer to differ
    assert server.requests[0][1]["Host"] == f"images.example:{server.port}"


def test_proxies_of_the_environment_are_not_used(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    result = load_image(server.url("picture.png"), allow_private_urls=True)
    np.testing.assert_array_equal(result, PICTURE)


def test_the_next_address_is_tried(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    names_resolve_to(monkeypatch, "127.0.0.9", "127.0.0.1")  # nothing listens on the first
    url = server.url("picture.png", "images.example")
    np.testing.assert_array_equal(load_image(url, allow_private_urls=True), PICTURE)


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_ipv6_host(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidImageError, match="private or local network"):
        load_image("http://[::1]:8080/a.png")
    with pytest.raises(InvalidImageError, match="private or local network"):
        load_image("http://[::ffff:7f00:1]/a.png")


# Secrets


def test_credentials_are_sent_to_their_host_alone(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    names_resolve_to(monkeypatch, "127.0.0.1", names=("images.example", "other.example"))
    host = "user:p%40ss@images.example"
    fetch(server.url("again/1", host), allow_private_urls=True)
    for _, headers in server.requests:
        assert base64.b64decode(headers["Authorization"].removeprefix("Basic ")) == b"user:p@ss"
    server.requests.clear()
    elsewhere = f"redirect/http!//other.example!{server.port}/picture.png"
    fetch(server.url(elsewhere, host), allow_private_urls=True)
    assert "Authorization" in server.requests[0][1]
    assert "Authorization" not in server.requests[1][1]


@pytest.mark.parametrize(
    "url",
    [
        "http://user:secret@127.0.0.1/a.png",
        "http://127.0.0.1/a.png?token=secret",
        "http://127.0.0.1/a.png#secret",
        "http://secret@localhost/",
        "http://user:secret@[::1/a.png",
        "http://user:secret@host:port/a.png",
        "http://user:secret@a..b/a.png",
        "http://user:se%zzsecret@\x00/a.png",
    ],
)
def test_messages_keep_secrets(url: str) -> None:
    with pytest.raises(InvalidImageError) as caught:
        load_image(url)
    error: BaseException | None = caught.value
    while error is not None:
        assert "secret" not in str(error)
        error = error.__cause__


def test_messages_about_the_content_keep_secrets(server: Server) -> None:
    with pytest.raises(InvalidImageError) as caught:
        load_image(server.url("page?secret", "user:secret@127.0.0.1"), allow_private_urls=True)
    assert "secret" not in str(caught.value)
    assert f"'http://127.0.0.1:{server.port}/page'" in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:pw@example.com:8443/a/b.png?c=d#e", "'https://example.com:8443/a/b.png'"),
        ("HTTPS://Example.com", "'https://example.com'"),
        ("http://[::1]:80/a", "'http://[::1]:80/a'"),
        ("http://user:pw@[::1", "'http://...'"),
        ("http://a/\x1b[31mred", r"'http://a/\x1b[31mred'"),
    ],
)
def test_public_url(url: str, shown: str) -> None:
    assert public_url(url) == shown


def test_public_url_is_short() -> None:
    assert len(public_url("http://example.com/" + "a" * 5000)) < 220


def test_is_url() -> None:
    assert is_url("http://a")
    assert is_url("HtTpS://a")
    for text in ("ftp://a", "http:/a", "a/http://b", "", "httpx://a", "beach.jpg"):
        assert not is_url(text)


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a certificate for images.example, key and all, in one file."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl program to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-keyout", str(folder / "key"), "-out", str(folder / "cert")]
    command += ["-subj", "/CN=images.example", "-addext", "subjectAltName=DNS:images.example"]
    subprocess.run(command, check=True, capture_output=True)
    (folder / "both").write_bytes((folder / "key").read_bytes() + (folder / "cert").read_bytes())
    return folder / "both"


@pytest.fixture
def secure_server(certificate: Path) -> Iterator[Server]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    running = Server(context)
    yield running
    running.stop()


@pytest.fixture
def trust(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the client trust the certificate of the secure server."""
    real: Callable[..., ssl.SSLContext] = ssl.create_default_context
    monkeypatch.setattr(ssl, "create_default_context", lambda: real(cafile=str(certificate)))


@pytest.mark.usefixtures("trust")
@pytest.mark.parametrize("host", ["images.example", "IMAGES.example."])
def test_https(secure_server: Server, monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    names_resolve_to(monkeypatch, "127.0.0.1")
    url = secure_server.url("picture.png", host, "https")
    np.testing.assert_array_equal(load_image(url, allow_private_urls=True), PICTURE)


@pytest.mark.usefixtures("trust")
def test_certificate_of_another_host(
    secure_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    names_resolve_to(monkeypatch, "127.0.0.1", names=("other.example",))
    url = secure_server.url("picture.png", "other.example", "https")
    with pytest.raises(InvalidImageError, match="certificate of its host is not valid"):
        fetch(url, allow_private_urls=True)


def test_certificate_of_nobody(secure_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    names_resolve_to(monkeypatch, "127.0.0.1")
    url = secure_server.url("picture.png", "images.example", "https")
    with pytest.raises(InvalidImageError, match="certificate of its host is not valid"):
        fetch(url, allow_private_urls=True)


@pytest.mark.usefixtures("trust")
def test_https_is_not_left_by_a_redirect(
    secure_server: Server, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    names_resolve_to(monkeypatch, "127.0.0.1")
    path = f"redirect/http!//127.0.0.1!{server.port}/picture.png"
    with pytest.raises(InvalidImageError, match="redirects from https to http"):
        fetch(secure_server.url(path, "images.example", "https"), allow_private_urls=True)
    assert server.requests == []


@pytest.mark.usefixtures("trust")
def test_slow_https_server(secure_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    names_resolve_to(monkeypatch, "127.0.0.1")
    url = secure_server.url("drip/body", "images.example", "https")
    with pytest.raises(InvalidImageError, match="longer than 0.5 seconds"):
        fetch(url, allow_private_urls=True, timeout=0.5)


def test_https_to_a_plain_server(server: Server) -> None:
    with pytest.raises(InvalidImageError, match="no secure connection"):
        fetch(server.url("picture.png", scheme="https"), allow_private_urls=True)


def test_handshake_that_never_ends() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/a.png"
        with pytest.raises(InvalidImageError, match="longer than 0.3 seconds"):
            fetch(url, allow_private_urls=True, timeout=0.3)
