"""What an attacker has and httpx does not: bytes sent as they are, a teacher that records them, attacks."""

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from proxy.traffic_file import Row

# The deployment under attack, and all that its teacher knows to answer.
SETTINGS = "[proxy]\nworkers = 1\nmax_body_mb = 1\n[spool]\nrotate_seconds = 0.2\n[serving]\nport = 1\n"
ROW = Row(({"role": "user", "content": "hello"},), "hi there", None, "gpt-4o", None)
HANG = 20.0  # seconds of silence after which a test fails
_ABORT = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer; names of headers in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def exchange(self) -> str:
        """Its id; empty where the proxy answered without relaying."""
        return self.headers.get("x-stillroom-exchange", "")


def said(answers: Sequence[Answer]) -> str:
    """Who answered what, such as `teacher 200, proxy 400`; nothing for a connection that was just closed."""
    return ", ".join(f"{'teacher' if answer.exchange else 'proxy'} {answer.status}" for answer in answers)


def request(line: str, *headers: str, body: bytes = b"") -> bytes:
    """A request as it is written here: only `Host` is added."""
    return "\r\n".join((line, "Host: proxy", *headers, "", "")).encode("latin-1") + body


def get(target: str, *headers: str) -> bytes:
    """A GET of any target."""
    return request(f"GET {target} HTTP/1.1", *headers)


def post(body: bytes, *headers: str, version: str = "1.1") -> bytes:
    """A chat request with its right length."""
    length = f"Content-Length: {len(body)}"
    return request(f"POST /v1/chat/completions HTTP/{version}", length, *headers, body=body)


def framed(*headers: str, body: bytes) -> bytes:
    """A chat request whose length only `headers` say."""
    return request("POST /v1/chat/completions HTTP/1.1", *headers, body=body)


def chunked(body: bytes, *headers: str) -> bytes:
    """A chat request whose body is said to be in chunks; `body` holds them as they go over the wire."""
    return framed("Transfer-Encoding: chunked", *headers, body=body)


@contextlib.contextmanager
def connected(port: int, data: bytes = b"", abort: bool = False) -> Iterator[socket.socket]:
    """A connection on which `data` was sent, as far as the server took it; `abort` ends it with a reset."""
    with socket.create_connection(("127.0.0.1", port), HANG) as connection:
        if abort:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
        with contextlib.suppress(ConnectionError):
            connection.sendall(data)
        yield connection


def read(connection: socket.socket, answers: int = 1) -> list[Answer]:
    """This many answers; fewer where the server closes first, TimeoutError where it does neither."""
    found: list[Answer] = []
    with connection.makefile("rb") as file, contextlib.suppress(ConnectionError, EOFError):
        while len(found) < answers:
            found.append(_answer(file))
    return found


def _answer(file: BinaryIO) -> Answer:
    status = int(_line(file).split(b" ")[1])
    headers: dict[str, str] = {}
    while line := _line(file):
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.lower()] = value.strip()
    return Answer(status, headers, _body(file, headers))


def _body(file: BinaryIO, headers: dict[str, str]) -> bytes:
    if headers.get("transfer-encoding") != "chunked":
        return _exactly(file, int(headers.get("content-length", "0")))
    whole = bytearray()
    while size := int(_line(file), 16):
        whole += _exactly(file, size)
        _line(file)
    _line(file)
    return bytes(whole)


def _line(file: BinaryIO) -> bytes:
    line = file.readline()
    if not line.endswith(b"\r\n"):
        raise EOFError
    return line[:-2]


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise EOFError
    return data


@dataclass(frozen=True, slots=True)
class Heard:
    """One request as it reached the teacher; the head in lower case."""

    line: str
    headers: tuple[str, ...]
    body: bytes


@contextlib.contextmanager
def recording() -> Iterator[tuple[int, list[Heard]]]:
    """A teacher on a free loopback port that answers `{}` to everything, and the list of what it heard."""
    heard: list[Heard] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_record, args=(listener, heard))
        thread.start()
        try:
            yield listener.getsockname()[1], heard
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def _record(listener: socket.socket, heard: list[Heard]) -> None:
    with contextlib.suppress(OSError):  # The listener was shut down.
        while True:
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as file:
                line, *headers = list(iter(lambda: _line(file).decode("latin-1").lower(), ""))
                length = next((header.split(":")[1] for header in headers if header.startswith("content-length:")), "0")
                heard.append(Heard(line, tuple(headers), _exactly(file, int(length))))
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")


MB = 1 << 20
CHAT = b'{"model":"gpt-4o","messages":[{"role":"user","content":"hello"}]}'
STREAM = CHAT[:-1] + b',"stream":true}'
MODELS = get("/v1/models")
SMUGGLED = get("/v1/smuggled")
BROKEN = "proxy 400"  # not HTTP: answered by the server itself, which then closes
LARGE = "proxy 413"
FINE = "teacher 200"
EMPTY = "teacher 400"  # the teacher understood the HTTP, and does not like `{}`
HEAD = "teacher 200|proxy 4.."  # how large a head may be is the proxy's to say

# What is sent, and a pattern of who must answer it and how.
FRAMING = {
    "length and chunks": (chunked(b"0\r\n\r\n" + SMUGGLED, "Content-Length: 6"), BROKEN),
    "chunks and length": (chunked(b"%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED), "Content-Length: 4"), BROKEN),
    "two lengths": (framed("Content-Length: 0", f"Content-Length: {len(SMUGGLED)}", body=SMUGGLED), BROKEN),
    "the same length twice": (framed("Content-Length: 2", "Content-Length: 2", body=b"{}" + SMUGGLED), BROKEN),
    "a list of lengths": (framed("Content-Length: 2, 2", body=b"{}" + SMUGGLED), BROKEN),
    "a length with plus": (framed("Content-Length: +2", body=b"{}" + SMUGGLED), BROKEN),
    "a length below zero": (framed("Content-Length: -2", body=b"{}" + SMUGGLED), BROKEN),
    "a length in hex": (framed("Content-Length: 0x2", body=b"{}" + SMUGGLED), BROKEN),
    "a length of 2^64 + 2": (framed("Content-Length: 18446744073709551618", body=b"{}" + SMUGGLED), BROKEN),
    "an empty length": (framed("Content-Length: ", body=b"{}" + SMUGGLED), BROKEN),
    "a superscript length": (framed("Content-Length: \xb2", body=b"{}" + SMUGGLED), BROKEN),
    "xchunked": (framed("Transfer-Encoding: xchunked", body=b"2\r\n{}\r\n0\r\n\r\n" + SMUGGLED), BROKEN),
    "identity": (framed("Transfer-Encoding: identity", body=b"2\r\n{}\r\n0\r\n\r\n" + SMUGGLED), BROKEN),
    "chunked, gzip": (framed("Transfer-Encoding: chunked, gzip", body=b"2\r\n{}\r\n0\r\n\r\n" + SMUGGLED), BROKEN),
    "gzip, chunked": (framed("Transfer-Encoding: gzip, chunked", body=b"2\r\n{}\r\n0\r\n\r\n" + SMUGGLED), BROKEN),
    "chunked twice": (framed("Transfer-Encoding: chunked, chunked", body=b"2\r\n{}\r\n0\r\n\r\n" + SMUGGLED), BROKEN),
    "chunked in quotes": (framed('Transfer-Encoding: "chunked"', body=b"2\r\n{}\r\n0\r\n\r\n" + SMUGGLED), BROKEN),
    "chunked after a control": (framed("Transfer-Encoding: \x0bchunked", body=b"0\r\n\r\n" + SMUGGLED), BROKEN),
    "chunked, then identity": (chunked(b"2\r\n{}\r\n0\r\n\r\n", "Transfer-Encoding: identity"), BROKEN),
    "chunked in capitals": (framed("Transfer-Encoding: CHUNKED", body=b"2\r\n{}\r\n0\r\n\r\n"), EMPTY),
    "a folded header": (get("/v1/models", "X-A: b", " Transfer-Encoding: chunked"), BROKEN),
    "a folded header with tab": (get("/v1/models", "X-A: b", "\tc"), BROKEN),
    "space before the first header": (request("GET /v1/models HTTP/1.1\r\n X-A: b"), BROKEN),
    "space before colon": (framed("Content-Length : 2", body=b"{}" + SMUGGLED), BROKEN),
    "space before colon of chunked": (framed("Transfer-Encoding : chunked", body=b"0\r\n\r\n" + SMUGGLED), BROKEN),
    "no colon": (get("/v1/models", "X-A"), BROKEN),
    "no name": (get("/v1/models", ": b"), BROKEN),
    "bare LF everywhere": (MODELS.replace(b"\r\n", b"\n"), BROKEN),
    "bare LF in a value": (get("/v1/models", "X-A: b\nX-B: c"), BROKEN),
    "bare CR in a value": (get("/v1/models", "X-A: b\rX-B: c"), BROKEN),
    "NUL in a value": (get("/v1/models", "X-A: b\0c"), BROKEN),
    "chunk size with plus": (chunked(b"+2\r\n{}\r\n0\r\n\r\n"), BROKEN),
    "chunk size with minus": (chunked(b"-2\r\n{}\r\n0\r\n\r\n"), BROKEN),
    "chunk size with 0x": (chunked(b"0x2\r\n{}\r\n0\r\n\r\n"), BROKEN),
    "chunk size with underscore": (chunked(b"0_2\r\n{}\r\n0\r\n\r\n"), BROKEN),
    "chunk size of 2^64 + 2": (chunked(b"10000000000000002\r\n{}\r\n0\r\n\r\n"), BROKEN),
    "space before chunk size": (chunked(b" 2\r\n{}\r\n0\r\n\r\n"), BROKEN),
    "space after chunk size": (chunked(b"2 \r\n{}\r\n0\r\n\r\n"), BROKEN),
    "no chunk size": (chunked(b"\r\n{}\r\n0\r\n\r\n"), BROKEN),
    "bare LF after chunk size": (chunked(b"2\n{}\n0\n\n"), BROKEN),
    "no line end after a chunk": (chunked(b"2\r\n{}xx0\r\n\r\n"), BROKEN),
    "chunk extension": (chunked(b"2;a=b\r\n{}\r\n0\r\n\r\n"), EMPTY),
    "long chunk extension": (chunked(b"2;" + b"a" * 100_000 + b"\r\n{}\r\n0\r\n\r\n"), EMPTY),
    "bare LF in a chunk extension": (chunked(b"2;a\n{}\r\n0\r\n\r\n"), BROKEN),
    "line end in a quoted chunk extension": (chunked(b'2;a="\r\n"\r\n{}\r\n0\r\n\r\n'), BROKEN),
    "more body than announced": (post(CHAT) + b"more", "teacher 200|proxy 400"),
    "10 GB announced": (framed("Content-Length: 10737418240", body=b"{"), LARGE),
    "10 GB announced and expected": (framed("Content-Length: 10737418240", "Expect: 100-continue", body=b""), LARGE),
    "one byte over the limit": (post(b" " * (MB + 1)), LARGE),
    "chunks over the limit": (chunked((b"10000\r\n" + b" " * 65536 + b"\r\n") * 17 + b"0\r\n\r\n"), LARGE),
}  # fmt: skip

TARGETS = {
    "CR LF in a path": (get("/v1/models%0d%0aX-A:%20b"), "teacher 404"),
    "CR LF in a query": (get("/v1/models?a=%0d%0aX-A:%20b"), FINE),
    "NUL": (get("/v1/\0"), BROKEN),
    "NUL in percent": (get("/v1/%00"), "teacher 404"),
    "no UTF-8 in percent": (get("/v1/%ff%ed%a0%80"), "teacher 404"),
    "no ASCII": (get("/v1/\xe9"), BROKEN),
    "tab": (get("/v1/a\tb"), BROKEN),
    "two slashes": (get("//evil.example/v1/x"), "proxy 404"),
    "backslashes": (get("/v1\\..\\x"), "proxy 404"),
    "no slash": (get("v1/models"), BROKEN),
    "asterisk": (get("*"), "proxy 404"),
    "user and host": (get("@evil.example/v1/models"), BROKEN),
    "cloud metadata": (get("http://169.254.169.254/"), "proxy 404"),
    "cloud metadata without path": (get("http://169.254.169.254"), BROKEN),
    "a file": (get("file:///etc/passwd"), BROKEN),
    "a port that is none": (get("http://evil.example:99999999/v1/models"), BROKEN),
    "CONNECT": (request("CONNECT 169.254.169.254:80 HTTP/1.1"), BROKEN),
    "60 kB": (get("/v1/" + "a" * 60_000), "teacher 404|proxy 414"),
    "64 kB": (get("/v1/" + "a" * 65_536), "proxy 4.."),
    "64 kB of query": (get("/v1/models?" + "a" * 65_536), "proxy 4.."),
    "1 MB": (get("/v1/" + "a" * MB), "proxy 4.."),
}

HEADS = {
    **{f"task with {code:#04x}": (get("/v1/models", f"x-stillroom-task: a{chr(code)}b"), BROKEN)
       for code in (0, 1, 8, 11, 27, 127)},
    "task with a tab": (get("/v1/models", "x-stillroom-task: a\tb"), FINE),
    "task beyond ASCII": (get("/v1/models", "x-stillroom-task: a\xe9b"), FINE),
    "task that is a path": (post(CHAT, "x-stillroom-task: ../../etc"), FINE),
    "100 headers of 8 kB": (get("/v1/models", *(f"X-{number}: {'a' * 8192}" for number in range(100))), HEAD),
    "10,000 headers": (get("/v1/models", *(f"X-{number}: a" for number in range(10_000))), HEAD),
    "a header of 1 MB": (get("/v1/models", "X-A: " + "a" * MB), HEAD),
    "a name of 1 MB": (get("/v1/models", "a" * MB + ": b"), HEAD),
    "no Host": (b"GET /v1/models HTTP/1.1\r\n\r\n", "teacher 200|proxy 400"),
    "two Hosts": (get("/v1/models", "Host: evil.example"), "teacher 200|proxy 400"),
    "forwarded for nobody": (get("/v1/models", "X-Forwarded-For: ,,[::1", "X-Forwarded-Proto: \xe9"), FINE),
    "Connection names everything": (post(CHAT, "Connection: host, authorization, content-length, content-type"), FINE),
    "empty lines first": (b"\r\n" * 1000 + MODELS, FINE),
    "a method nobody knows": (request("EVIL /v1/models HTTP/1.1"), BROKEN),
    "a method in small letters": (request("get /v1/models HTTP/1.1"), BROKEN),
    "RTSP": (request("DESCRIBE /v1/models RTSP/1.0"), "teacher 4..|proxy 4.."),
    "HTTP/0.9": (b"GET /v1/models\r\n\r\n", BROKEN),
    "HTTP/0.9 with a body": (b"POST /v1/models\r\nContent-Length: 2\r\n\r\n{}" + SMUGGLED, BROKEN),
    "HTTP/1.0": (post(CHAT, version="1.0"), FINE),
    "HTTP/1.0 in chunks": (request("POST /v1/models HTTP/1.0", "Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
                           "teacher 405|proxy 400"),
    "HTTP/1.2": (request("GET /v1/models HTTP/1.2"), BROKEN),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9), BROKEN),
    "TLS": (bytes.fromhex("16030100f8010000f40303") + bytes(100), BROKEN),
    "h2c": (get("/v1/models", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AA"),
            "teacher 200|proxy 4.."),
    "websocket": (get("/v1/realtime", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
                      f"Sec-WebSocket-Key: {'A' * 22}=="), "teacher 404|proxy 4.."),
    "websocket without a key": (get("/v1/realtime", "Connection: Upgrade", "Upgrade: websocket"),
                                "teacher 404|proxy 4.."),
}  # fmt: skip

BODIES = {
    "keys given twice": (post(CHAT[:-1] + b',"stream":true,"stream":false,"model":"gpt-4o"}'), FINE),
    "half a surrogate pair": (post(CHAT.replace(b"hello", b"\\ud800")), "teacher 404"),
    "NaN": (post(CHAT[:-1] + b',"temperature":NaN,"top_p":-Infinity}'), FINE),
    "a number of 5,000 digits": (post(CHAT[:-1] + b',"seed":' + b"9" * 5000 + b"}"), "teacher 400"),
    "1 MB of quotes": (post(b'"' * MB), "teacher 400"),
    "1 MB of backslashes in a stream": (post(b'{"stream":true,"a":"' + b"\\" * (MB - 30) + b'"}'), "teacher 400"),
    "no UTF-8": (post(CHAT.replace(b"hello", b"\xff\xfe\xed\xa0\x80")), "teacher 400"),
    "NUL": (post(b"\0" * 1000), "teacher 400"),
    "NUL in a string": (post(CHAT.replace(b"hello", b"\\u0000")), "teacher 404"),
    "not the encoding it says": (post(CHAT, "Content-Encoding: gzip, br, zstd, x"), FINE),
}  # fmt: skip

# Our own decoder gives up on these, and so does the replay teacher's.
NESTED = (
    post(b"[" * 100_000 + b"]" * 100_000),
    post(CHAT[:-1] + b',"x":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001),
    post(STREAM[:-1] + b',"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    post(CHAT[:-1] + b',"stream":' + b"[" * 100_000),
)
ATTACKS = {"framing": FRAMING, "target": TARGETS, "head": HEADS, "body": BODIES}
