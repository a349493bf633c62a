"""A local server that behaves as badly as those of data sets: cuts, wrong bytes, web pages, Drive.

Also stands in for Google Drive: gdown's requests to Google are sent here instead.
"""

from __future__ import annotations

import contextlib
import io
import tarfile
import threading
import urllib.parse
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

GOOGLE = ("https://drive.google.com", "https://drive.usercontent.google.com")
INTERSTITIAL = (  # one line, as Google sends it
    "<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head><body>"
    '<form id="download-form" action="https://drive.usercontent.google.com/download" method="get">'
    '<input type="submit" id="uc-download-link" value="Download anyway"/>'
    '<input type="hidden" name="id" value="{id}"><input type="hidden" name="export" '
    'value="download"><input type="hidden" name="confirm" value="t"></form></body></html>'
)
QUOTA = """<!DOCTYPE html><html><body><p class="uc-error-caption">Sorry</p>
<p class="uc-error-subcaption">Too many users have viewed or downloaded this file recently.</p>
</body></html>"""


class FileServer:
    """Serves `files` by path; what is listed in the other attributes goes wrong."""

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.cuts: dict[str, list[int]] = {}  # bytes of each next answer before it is cut
        self.status: dict[str, int] = {}
        self.pages: dict[str, str] = {}  # a web page instead
        self.without_range: set[str] = set()
        self.drive: dict[str, str] = {}  # Drive id -> path; "" is over its quota
        self.interstitial: set[str] = set()  # ids that ask about a virus scan first
        self.log: list[tuple[str, str]] = []  # path, Range
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                with contextlib.suppress(ConnectionError):
                    server.answer(self)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def asked(self, path: str) -> list[str]:
        """The Range headers that a path was asked with."""
        return [wanted for asked, wanted in self.log if asked == path]

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        parsed = urllib.parse.urlparse(request.path)
        path, disposition = parsed.path, {}
        if path in ("/uc", "/download"):
            query = urllib.parse.parse_qs(parsed.query)
            drive_id = query["id"][0]
            path = self.drive.get(drive_id)
            if path is None or path == "":
                return self.page(request, QUOTA)
            if drive_id in self.interstitial and query.get("confirm") != ["t"]:
                return self.page(request, INTERSTITIAL.format(id=drive_id))
            disposition = {"Content-Disposition": f'attachment; filename="{Path(path).name}"'}
        wanted = request.headers.get("Range", "")
        self.log.append((path, wanted))
        if path in self.pages:
            return self.page(request, self.pages[path])
        if path in self.status or path not in self.files:
            return request.send_error(self.status.get(path, 404))
        return self.send(request, path, wanted, disposition)

    @staticmethod
    def page(request, text: str) -> None:
        request.send_response(200)
        request.send_header("Content-Type", "text/html; charset=utf-8")
        request.end_headers()
        request.wfile.write(text.encode())

    def send(self, request, path: str, wanted: str, headers: dict[str, str]) -> None:
        content, tag = self.files[path], f'"{hash(self.files[path])}"'
        start, end, status = 0, len(content), 200
        if_range = request.headers.get("If-Range", tag)
        if wanted and path not in self.without_range and if_range == tag:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), int(last) + 1 if last else len(content)
            if start >= len(content):
                request.send_response(416)
                request.send_header("Content-Range", f"bytes */{len(content)}")
                request.end_headers()
                return
            status = 206
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
        request.send_response(status)
        headers = {"Content-Type": "application/octet-stream", "ETag": tag, **headers}
        for name, value in {**headers, "Content-Length": str(end - start)}.items():
            request.send_header(name, value)
        request.end_headers()
        body = content[start:end]
        if self.cuts.get(path):
            body = body[: self.cuts[path].pop(0)]
        request.wfile.write(body)


def send_google_here(monkeypatch, server: FileServer) -> None:
    """Let gdown's requests to Google reach the local server."""
    import requests

    original = requests.Session.request

    def redirected(self, method, url, **keys):
        for host in GOOGLE:
            url = url.replace(host, server.url)
        return original(self, method, url, **keys)

    monkeypatch.setattr(requests.Session, "request", redirected)


def tar_of(folder: Path, prefix: str = "", mode: str = "w:gz") -> bytes:
    """The content of a folder as a tar archive, under a prefix."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for path in sorted(folder.rglob("*")):
            info = tar.gettarinfo(path, prefix + path.relative_to(folder).as_posix())
            if path.is_dir():
                tar.addfile(info)
            else:  # without hard links between the tiny images
                info.type, info.linkname, info.size = tarfile.REGTYPE, "", path.stat().st_size
                with path.open("rb") as file:
                    tar.addfile(info, file)
    return buffer.getvalue()


def zip_of(folder: Path, prefix: str = "") -> bytes:
    """The content of a folder as a zip archive, under a prefix."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.writestr(prefix + path.relative_to(folder).as_posix(), path.read_bytes())
    return buffer.getvalue()


def tar_with(*members: tarfile.TarInfo | tuple[str, bytes]) -> bytes:
    """A tar archive of hand-made members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return buffer.getvalue()


def member(name: str, kind: bytes, linkname: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, linkname
    return info
