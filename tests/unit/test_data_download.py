"""`pcb download` against a server on this machine that breaks off, forgets ranges, lies and lacks files."""

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
    """Serves `files`. `breaks`: bytes after which each of the next answers is cut; `busy`: how many answers are 503; `ranges`: obeyed."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.breaks, self.busy, self.ranges, self.asked, self.version = (
            {"/a.bin": CONTENT},
            [],
            0,
            True,
            [],
            "1",
        )
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.server.asked.append(self.headers.get("Range"))
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


def test_a_download_that_breaks_off_goes_on_where_it_stopped(server, tmp_path):
    server.breaks, server.busy = [2 * BLOCK_BYTES, BLOCK_BYTES], 2
    fetch(f"{server.url}/a.bin", tmp_path / "new/a.bin", sha256=DIGEST[:8], pause=0)
    assert (tmp_path / "new/a.bin").read_bytes() == CONTENT
    assert server.asked == [None, f"bytes={2 * BLOCK_BYTES}-", f"bytes={3 * BLOCK_BYTES}-"]
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.bin"], "no part is left"


def test_a_later_call_goes_on_too_unless_the_file_is_another_by_then(server, tmp_path):
    server.breaks = [BLOCK_BYTES]
    error = fault(fetch, f"{server.url}/a.bin", tmp_path / "a.bin", attempts=1, pause=0)
    assert (
        "1 attempts" in error.what
        and "the same command resumes" in error.fix
        and not (tmp_path / "a.bin").exists()
    )
    server.version, server.files["/a.bin"], before = "2", CONTENT[::-1], server.asked[:]
    fetch(f"{server.url}/a.bin", tmp_path / "a.bin", pause=0)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT[::-1] and server.asked[
        len(before)
    ] is None, "begun anew"
    server.version, server.files["/a.bin"] = "1", CONTENT
    fetch(f"{server.url}/a.bin", tmp_path / "a.bin", sha256=DIGEST, pause=0)
    assert server.asked[-1] == f"bytes={BLOCK_BYTES}-", "the old part went on"


def test_a_server_without_ranges_sends_all_again(server, tmp_path):
    server.breaks, server.ranges = [BLOCK_BYTES], False
    fetch(f"{server.url}/a.bin", tmp_path / "a.bin", sha256=DIGEST, pause=0)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_wrong_content_is_refused_and_leaves_nothing(server, tmp_path):
    error = fault(fetch, f"{server.url}/a.bin", tmp_path / "a.bin", sha256="0676ba61", pause=0)
    assert f"its sha256 is {DIGEST[:12]}…, not 0676ba61…" in error.what and not list(
        tmp_path.iterdir()
    )


def test_what_no_second_attempt_can_mend_ends_at_once(server, tmp_path, monkeypatch):
    error = fault(fetch, f"{server.url}/none.bin", tmp_path / "none.bin")
    assert (
        "404 Not Found" in error.what
        and "configs/downloads.yaml" in error.fix
        and str(tmp_path / "none.bin") in error.fix
    )
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    assert (
        "0.0 GB are free" in fault(fetch, f"{server.url}/a.bin", tmp_path / "a.bin").what
        and server.asked == []
    )


def zipped(**files) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "/"), content)
    return out.getvalue()


@pytest.fixture
def study(server, tmp_path, monkeypatch):
    """A scale whose files the server offers: annotations and images as zips, weights as they are, v0.5 not at all."""
    server.files |= {
        "/lvis_v1_val.json.zip": zipped(**{"lvis_v1_val.json": b"{}"}),
        "/val2017.zip": zipped(**{"val2017__1.jpg": b"one", "val2017__2.jpg": b"two"}),
    }
    urls = {
        "lvis_v1_val.json": "lvis_v1_val.json.zip",
        "val2017": "val2017.zip",
        "lvis_v0.5_train.json": "lvis_v0.5_train.json.zip",
    }
    known = {
        name: {"url": f"{server.url}/{file}", **({"withdrawn": True} if "0.5" in name else {})}
        for name, file in urls.items()
    }
    monkeypatch.setattr(module, "downloads", lambda: known)
    old = {
        "train": f"{tmp_path}/lvis_v0.5_train.json",
        "val": f"{tmp_path}/own.json",
        "images": f"{tmp_path}/coco",
    }
    new = {
        "train": f"{tmp_path}/own.json",
        "val": f"{tmp_path}/lvis_v1_val.json",
        "images": f"{tmp_path}/coco",
    }
    return SimpleNamespace(
        scale={
            "name": "here",
            "datasets": {"v05": old, "v1": new},
            "backbones": {"r50": {"weights": "pretrain"}},
        }
    )


def test_all_that_the_public_offers_is_unpacked_in_its_place_and_the_rest_is_named(
    study, server, tmp_path, capsys
):
    error = fault(download, study)
    assert "lvis_v0.5_train.json.zip: 404" in error.what and V05_BY_HAND in error.fix
    assert (tmp_path / "lvis_v1_val.json").read_text() == "{}"
    assert {p.name: p.read_text() for p in (tmp_path / "coco/val2017").iterdir()} == {
        "1.jpg": "one",
        "2.jpg": "two",
    }
    assert sorted(p.name for p in tmp_path.iterdir()) == ["coco", "lvis_v1_val.json"], (
        "archives and parts are gone"
    )
    asked = len(server.asked)
    download(study, ["lvis_v1_val.json", "val2017"])
    assert len(server.asked) == asked and "exists" in capsys.readouterr().out
    assert "named coco" in fault(download, study, ["coco"]).what


def test_a_damaged_archive_is_deleted_and_an_interrupted_unpacking_goes_on(study, server, tmp_path):
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
    assert set(expected_files(scale)) == set(module.downloads()), (
        "every address serves the scale, every standard file has one"
    )
    assert expected_files(load_study("mini").scale) == {}
    assert "pcb download lvis_v1_train.json" in missing_file_fix(Path("x/lvis_v1_train.json"))
    assert V05_BY_HAND in missing_file_fix(
        Path("lvis_v0.5_val.json")
    ) and "generate it again" in missing_file_fix(Path("my.json"))
