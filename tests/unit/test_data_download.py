"""`pcb download` against a local server that drops connections and has bad or missing files."""

import hashlib
import io
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from pcb.data import download as module
from pcb.data.download import (
    BLOCK_BYTES,
    V05_BY_HAND,
    download,
    expected_files,
    fetch,
    missing_file_fix,
)
from pcb.errors import UserError
from pcb.study import load_study

CONTENT = bytes(range(256)) * 4000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `files`.

    `breaks`: bytes after which each of the next responses is cut; `busy`: how many responses are
    503; `ranges`: whether it honours range requests; `requested`: the ranges of all GET requests.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.version = {"/a.bin": CONTENT}, "1"
        self.breaks, self.busy, self.ranges, self.requested = [], 0, True, []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.server.requested.append(self.headers.get("Range"))
        self.answer(body=True)

    def answer(self, body):
        content, server = self.server.files.get(self.path), self.server
        if server.busy:
            server.busy -= 1
            return self.send_error(503)
        if content is None:
            return self.send_error(404)
        start = int(self.headers["Range"][6:-1]) if "Range" in self.headers and server.ranges else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", server.version)
        self.end_headers()
        if body:
            self.wfile.write(
                content[start : start + server.breaks.pop(0)] if server.breaks else content[start:]
            )


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.0)
    running = Server()
    threading.Thread(
        target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    ).start()
    yield running
    running.shutdown()
    running.server_close()


def fault(call, *arguments, **options) -> UserError:
    with pytest.raises(UserError) as caught:
        call(*arguments, **options)
    return caught.value


def test_an_interrupted_download_resumes(server, tmp_path):
    server.breaks, server.busy = [2 * BLOCK_BYTES, BLOCK_BYTES], 2
    fetch(f"{server.url}/a.bin", tmp_path / "new/a.bin", sha256=DIGEST[:8], pause=0)
    assert (tmp_path / "new/a.bin").read_bytes() == CONTENT
    assert server.requested == [None, f"bytes={2 * BLOCK_BYTES}-", f"bytes={3 * BLOCK_BYTES}-"]
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.bin"], (
        "no partial download is left"
    )


def test_a_later_call_resumes_unless_the_file_has_changed(server, tmp_path):
    server.breaks = [BLOCK_BYTES]
    error = fault(fetch, f"{server.url}/a.bin", tmp_path / "a.bin", attempts=1, pause=0)
    assert "1 attempts" in error.what and "the same command resumes" in error.fix
    assert not (tmp_path / "a.bin").exists()
    server.version, server.files["/a.bin"] = "2", CONTENT[::-1]
    server.requested.clear()
    fetch(f"{server.url}/a.bin", tmp_path / "a.bin", pause=0)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT[::-1]
    assert server.requested == [None], "started over"
    server.version, server.files["/a.bin"] = "1", CONTENT
    fetch(f"{server.url}/a.bin", tmp_path / "a.bin", sha256=DIGEST, pause=0)
    assert server.requested[-1] == f"bytes={BLOCK_BYTES}-", (
        "the partial download of this version was resumed"
    )


def test_a_download_starts_over_where_the_server_knows_no_ranges(server, tmp_path):
    server.breaks, server.ranges = [BLOCK_BYTES], False
    fetch(f"{server.url}/a.bin", tmp_path / "a.bin", sha256=DIGEST, pause=0)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_wrong_content_is_deleted(server, tmp_path):
    error = fault(fetch, f"{server.url}/a.bin", tmp_path / "a.bin", sha256="0676ba61", pause=0)
    assert f"its sha256 is {DIGEST[:12]}…, not 0676ba61…" in error.what
    assert not list(tmp_path.iterdir())


def test_errors_that_no_second_attempt_can_fix_are_raised_at_once(server, tmp_path, monkeypatch):
    error = fault(fetch, f"{server.url}/none.bin", tmp_path / "none.bin")
    assert "404 Not Found" in error.what
    assert "configs/downloads.yaml" in error.fix and str(tmp_path / "none.bin") in error.fix
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    error = fault(fetch, f"{server.url}/a.bin", tmp_path / "a.bin")
    assert "0.0 GB are free" in error.what and server.requested == []


def zipped(**files) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "/"), content)
    return out.getvalue()


@pytest.fixture
def study(server, tmp_path, monkeypatch):
    """A scale of which the server has zips of v1.0 val and of the val images, but not v0.5."""
    server.files |= {
        "/lvis_v1_val.json.zip": zipped(**{"lvis_v1_val.json": b"{}"}),
        "/val2017.zip": zipped(**{"val2017__1.jpg": b"one", "val2017__2.jpg": b"two"}),
    }
    entries = {
        name: {"url": f"{server.url}/{name}.zip"}
        for name in ("lvis_v1_val.json", "val2017", "lvis_v0.5_train.json")
    }
    entries["lvis_v0.5_train.json"]["withdrawn"] = True
    monkeypatch.setattr(module, "downloads", lambda: entries)
    own, images = f"{tmp_path}/own.json", f"{tmp_path}/coco"
    old = {"train": f"{tmp_path}/lvis_v0.5_train.json", "val": own, "images": images}
    new = {"train": own, "val": f"{tmp_path}/lvis_v1_val.json", "images": images}
    return SimpleNamespace(
        scale={
            "name": "here",
            "datasets": {"v05": old, "v1": new},
            "backbones": {"r50": {"weights": "pretrain"}},
        }
    )


def test_public_files_are_unpacked_and_failed_ones_are_named(study, server, tmp_path, capsys):
    error = fault(download, study)
    assert "lvis_v0.5_train.json.zip: 404" in error.what and V05_BY_HAND in error.fix
    assert (tmp_path / "lvis_v1_val.json").read_text() == "{}"
    images = {path.name: path.read_text() for path in (tmp_path / "coco/val2017").iterdir()}
    assert images == {"1.jpg": "one", "2.jpg": "two"}
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["coco", "lvis_v1_val.json"], "archives and partial downloads are deleted"
    server.requested.clear()
    download(study, ["lvis_v1_val.json", "val2017"])
    assert server.requested == [] and "exists" in capsys.readouterr().out
    assert "named coco" in fault(download, study, ["coco"]).what


def test_a_damaged_archive_is_deleted_and_unpacking_resumes(study, server, tmp_path):
    good = server.files["/val2017.zip"]
    server.files["/val2017.zip"] = good.replace(b"two", b"tvo", 1)
    error = fault(download, study, ["val2017"])
    assert "is damaged: Bad CRC-32" in error.what and not (tmp_path / "coco/val2017").exists()
    assert not list((tmp_path / "coco").glob("*.zip"))
    server.files["/val2017.zip"] = good
    download(study, ["val2017"])
    assert len(list((tmp_path / "coco/val2017").iterdir())) == 2


def test_the_lvis_scale_names_files_that_can_be_fetched():
    scale = load_study("lvis").scale
    assert set(expected_files(scale)) == set(module.downloads())
    assert expected_files(load_study("mini").scale) == {}
    assert "pcb download lvis_v1_train.json" in missing_file_fix(Path("x/lvis_v1_train.json"))
    assert V05_BY_HAND in missing_file_fix(Path("lvis_v0.5_val.json"))
    assert "generate it again" in missing_file_fix(Path("my.json"))
