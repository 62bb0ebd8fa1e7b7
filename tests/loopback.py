"""A server on this machine that misbehaves as told."""

import os
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

# Files of home directories and proxies have no say in what a test sees.
CLEAN = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy") and "CA_BUNDLE" not in k}


@dataclass
class Site:
    """A server's behaviour, to be changed in between, and what it was asked."""

    body: bytes = b""
    etag: str = '"one"'
    date: str = "Wed, 01 Jan 2020 00:00:00 GMT"
    ranges: bool = True
    length: int | None = None  # announced; the true one where None
    chunked: bool = False
    kind: str = "application/octet-stream"
    cuts: list[int] = field(default_factory=list)  # bytes after which the next answers break off
    statuses: list[tuple[int, dict[str, str]]] = field(default_factory=list)  # of the next answers
    head: int = 200
    pause: float = 0.0  # seconds after each 10 000 bytes
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    conditions: list[str] = field(default_factory=list)  # of the ranges asked for
    url: str = ""

    @property
    def gets(self) -> list[str]:
        """The ranges that were asked for ("" for all)."""
        return [wanted for method, _, wanted in self.asked if method == "GET"]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def log_message(self, *_: object) -> None: ...

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        site, wanted = self.site, self.headers.get("Range", "")
        site.asked.append((self.command, self.path, wanted))
        if site.statuses or (not with_body and site.head != 200):
            status, headers = site.statuses.pop(0) if site.statuses else (site.head, {})
            return self.send(status, {"Content-Length": "0", **headers})
        headers = {"Content-Type": site.kind, "ETag": site.etag, "Last-Modified": site.date}
        status, begin, body = 200, 0, site.body
        site.conditions += [self.headers.get("If-Range", "")] if wanted else []
        valid = self.headers.get("If-Range", "") in ("", site.etag, site.date)
        if wanted and site.ranges and valid:
            begin = int(wanted.removeprefix("bytes=").rstrip("-"))
            if begin >= len(body):
                return self.send(416, {"Content-Range": f"bytes */{len(body)}", "Content-Length": "0"})
            status, headers["Content-Range"] = 206, f"bytes {begin}-{len(body) - 1}/{len(body)}"
            body = body[begin:]
        if site.chunked:
            headers["Transfer-Encoding"] = "chunked"
        else:
            headers["Content-Length"] = str(len(body) if site.length is None else site.length - begin)
        self.send(status, {name: value for name, value in headers.items() if value})
        if with_body:
            self.pour(body)

    def send(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def pour(self, body: bytes) -> None:
        cut = self.site.cuts.pop(0) if self.site.cuts else len(body)
        sent = body[:cut]
        try:
            for start in range(0, len(sent), 10_000):
                piece = sent[start : start + 10_000]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if self.site.chunked else piece)
                time.sleep(self.site.pause)
            if self.site.chunked and cut >= len(body):
                self.wfile.write(b"0\r\n\r\n")
        except OSError:  # the client was killed
            pass
        if cut < len(body) or self.site.length is not None:
            self.close_connection = True
