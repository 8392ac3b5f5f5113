"""Small writers of PhysioNet's formats and of pictures, a local web server, and the real data if they are here."""

from __future__ import annotations

import io
import struct
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdlib.data import cache, fetch, mitdb


def pack_212(samples: np.ndarray) -> bytes:
    """Return samples in format 212, written from its description: two in three bytes, high nibbles in the middle."""
    out = bytearray()
    values = [int(value) & 0xFFF for value in samples.reshape(-1)]
    for first, second in zip(values[::2], [*values[1::2], 0], strict=False):
        out += bytes([first & 0xFF, (first >> 8) | ((second >> 8) << 4), second & 0xFF])
    return bytes(out[: (3 * len(values) + 1) // 2])


def pack_annotations(annotations: list[tuple[int, int]], extras: dict[int, bytes] | None = None) -> bytes:
    """Return MIT annotations of (sample, code); `extras` are raw bytes to put after the annotation of that index."""
    out, time = b"", 0
    for index, (sample, code) in enumerate(annotations):
        step = sample - time
        if not 0 <= step < 1024:
            out += struct.pack("<HHH", 59 << 10, step >> 16 & 0xFFFF, step & 0xFFFF)
            step = 0
        out += struct.pack("<H", code << 10 | step)
        out += (extras or {}).get(index, b"")
        time = sample
    return out + b"\0\0"


@pytest.fixture(scope="session", name="pack_212")
def _pack_212() -> Callable[[np.ndarray], bytes]:
    return pack_212


@pytest.fixture(scope="session", name="pack_annotations")
def _pack_annotations() -> Callable[..., bytes]:
    return pack_annotations


@pytest.fixture
def write_record(tmp_path: Path) -> Callable[..., Path]:
    """Write record 100 of the given samples (frames, signals) and annotations; return the folder."""

    def write(samples: np.ndarray, annotations: list[tuple[int, int]], extras: dict[int, bytes] | None = None) -> Path:
        lines = [f"100 {samples.shape[1]} 360 {len(samples)}"]
        for channel in samples.T:
            checksum = (int(channel.sum()) + 32768) % 65536 - 32768
            lines.append(f"100.dat 212 200 11 1024 {channel[0]} {checksum} 0 MLII")
        (tmp_path / "100.hea").write_text("\n".join(lines) + "\n# a comment\n")
        (tmp_path / "100.dat").write_bytes(pack_212(samples))
        (tmp_path / "100.atr").write_bytes(pack_annotations(annotations, extras))
        return tmp_path

    return write


class Server:
    """A web server on this machine: `routes` maps a path to bytes or to a function of the request handler."""

    def __init__(self) -> None:
        self.routes: dict[str, bytes | Callable[[BaseHTTPRequestHandler], None]] = {}
        self.asked: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append(self.path)
                answer = server.routes.get(self.path)
                try:
                    if answer is None:
                        self.send_error(404)
                    elif isinstance(answer, bytes):
                        self.send_response(200)
                        self.send_header("Content-Length", str(len(answer)))
                        self.end_headers()
                        self.wfile.write(answer)
                    else:
                        answer(self)
                except OSError:  # the client closed the connection, as it should
                    pass

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.scheme = "http"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.http.server_port}"

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope="session")
def real_folder() -> Path:
    """The folder of the real records; they are never downloaded."""
    place = fetch.where("mitdb")
    if place is None or not (place.path / "100.dat").exists():
        pytest.skip("the real MIT-BIH records are not here: set KDLIB_DATA or run `kd data fetch mitdb`")
    return place.path


@pytest.fixture(scope="session")
def real(real_folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return mitdb.heartbeats(real_folder)


@pytest.fixture(scope="session")
def real_folder_of() -> Callable[[str], Path]:
    """The folder of a real set of pictures or weights; it is never downloaded."""

    def folder(name: str) -> Path:
        place = fetch.where(name)
        if place is None:
            pytest.skip(f"the real {name} is not here: set KDLIB_DATA or run `kd data fetch {name}`")
        return place.path

    return folder


def jpeg(value: int, side: int = 8, mode: str = "RGB", format: str = "JPEG") -> bytes:
    """Return a picture file whose pixels follow from `value`: other values give other pictures."""
    pixels = np.random.default_rng(value).integers(0, 256, (side, side, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(out, format, quality=95)
    return out.getvalue()


@pytest.fixture(scope="session", name="jpeg")
def _jpeg() -> Callable[..., bytes]:
    return jpeg


@pytest.fixture
def write_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write files by their paths below a folder `set`, and return the folder; the user cache is an empty folder."""
    monkeypatch.setattr(cache, "cache_folder", lambda: tmp_path / "cache")

    def write(files: dict[str, bytes], name: str = "set") -> Path:
        for file, content in files.items():
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_bytes(content)
        return tmp_path / name

    return write
