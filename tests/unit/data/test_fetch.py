"""Downloads against a server on this machine that keeps ranges and hangs up when told to."""

from __future__ import annotations

import functools
import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from popmi_core.data import fetch
from popmi_core.data.fetch import fetch_medmnist
from popmi_core.data.medmnist_index import MEDMNIST, MedMnistSet, file_name
from popmi_core.errors import DataError

CONTENT = np.random.default_rng(0).bytes(100_000)


class _Server(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT; ``plan.cut`` ends each reply after so many bytes, ``plan.ranges`` False ignores ranges."""

    plan: SimpleNamespace

    def __init__(self, plan: SimpleNamespace, *arguments: object) -> None:
        self.plan = plan
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        self.plan.asked.append((self.path, self.headers.get("Range")))
        if self.plan.statuses:
            self.send_error(self.plan.statuses.pop(0))
            return
        wanted = self.headers.get("Range") if self.plan.ranges else None
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        if start and start >= len(self.plan.content):
            self.send_error(416)
            return
        body = self.plan.content[start:]
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.plan.cut])  # the connection closes after the reply, whole or not

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    known = MedMnistSet({28: hashlib.md5(CONTENT).hexdigest()}, ("a", "b"))
    monkeypatch.setattr(fetch, "MEDMNIST", {"blobs": known})
    plan = SimpleNamespace(content=CONTENT, cut=None, ranges=True, statuses=[], asked=[])
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Server, plan)) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        plan.url = f"http://127.0.0.1:{running.server_port}"
        yield plan
        running.shutdown()


def _get(plan: SimpleNamespace, folder: Path, **options: int) -> Path:
    return fetch_medmnist("blobs", folder, mirror=plan.url, pause=0.0, **options)


def test_a_whole_file_arrives(server: SimpleNamespace, tmp_path: Path) -> None:
    path = _get(server, tmp_path / "new")

    assert path.read_bytes() == CONTENT
    assert server.asked == [("/blobs.npz", None)]
    assert [file.name for file in path.parent.iterdir()] == ["blobs.npz"]


def test_a_connection_that_breaks_again_and_again_is_continued(server: SimpleNamespace, tmp_path: Path) -> None:
    server.cut = 30_000

    assert _get(server, tmp_path, attempts=1).read_bytes() == CONTENT
    assert [asked for _, asked in server.asked] == [None, "bytes=30000-", "bytes=60000-", "bytes=90000-"]


def test_a_later_call_goes_on_where_a_killed_one_stopped(server: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "blobs.npz.part").write_bytes(CONTENT[:70_000])

    assert _get(server, tmp_path).read_bytes() == CONTENT
    assert server.asked == [("/blobs.npz", "bytes=70000-")]


def test_a_part_that_was_complete_already_needs_no_server(server: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "blobs.npz.part").write_bytes(CONTENT)

    assert _get(server, tmp_path).read_bytes() == CONTENT
    assert server.asked == []


def test_a_server_without_ranges_sends_the_file_anew(server: SimpleNamespace, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / "blobs.npz.part").write_bytes(b"x" * 500)

    assert _get(server, tmp_path).read_bytes() == CONTENT


def test_a_part_longer_than_the_file_is_thrown_away(server: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "blobs.npz.part").write_bytes(CONTENT + b"more")

    assert _get(server, tmp_path).read_bytes() == CONTENT


def test_a_busy_server_is_asked_again(server: SimpleNamespace, tmp_path: Path) -> None:
    server.statuses = [503, 429]

    assert _get(server, tmp_path).read_bytes() == CONTENT


def test_another_file_than_the_published_one_is_deleted(server: SimpleNamespace, tmp_path: Path) -> None:
    server.content = CONTENT[:-1] + b"?"
    got, wanted = (hashlib.md5(data).hexdigest() for data in (server.content, CONTENT))

    with pytest.raises(DataError, match=f"blobs.npz from .* has MD5 {got}, expected {wanted}; it was deleted"):
        _get(server, tmp_path)

    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_and_right_is_left_alone(server: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "blobs.npz").write_bytes(CONTENT)

    assert _get(server, tmp_path) == tmp_path / "blobs.npz"
    assert server.asked == []


def test_a_file_of_another_origin_is_not_overwritten(server: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "blobs.npz").write_bytes(b"rebuilt by someone")

    with pytest.raises(DataError, match=r"is there already with MD5 .* Name another folder"):
        _get(server, tmp_path)

    assert (tmp_path / "blobs.npz").read_bytes() == b"rebuilt by someone"


def test_a_server_that_never_gives_a_byte_ends_the_attempt_and_keeps_what_is_there(
    server: SimpleNamespace, tmp_path: Path
) -> None:
    server.cut = 0
    (tmp_path / "blobs.npz.part").write_bytes(CONTENT[:10])

    with pytest.raises(DataError, match=r"cannot download .*: the connection ended early. What was downloaded so far"):
        _get(server, tmp_path, attempts=2)

    assert len(server.asked) == 2
    assert (tmp_path / "blobs.npz.part").read_bytes() == CONTENT[:10]


def test_a_file_the_server_does_not_have_is_told_at_once(server: SimpleNamespace, tmp_path: Path) -> None:
    server.statuses = [404]

    with pytest.raises(DataError, match=r"the server answered 404 \(Not Found\)"):
        _get(server, tmp_path)

    assert len(server.asked) == 1


def test_no_network_is_told_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot download http://127.0.0.1:9/bloodmnist.npz: .*put it into the folder"):
        fetch_medmnist("bloodmnist", tmp_path, mirror="http://127.0.0.1:9", attempts=1)


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(DataError, match="cannot be written: Not a directory"):
        fetch_medmnist("bloodmnist", tmp_path / "file" / "below")


def test_an_unknown_set_or_size_is_refused_with_the_choices(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no MedMNIST set 'chestmnist' for POPMI. Choose one of pathmnist, dermamnist"):
        fetch_medmnist("chestmnist", tmp_path)
    with pytest.raises(DataError, match="dermamnist comes in 28, 64, 128, 224 pixels, not in 32"):
        fetch_medmnist("dermamnist", tmp_path, size=32)


def test_every_known_set_has_a_checksum_of_every_size() -> None:
    assert len(MEDMNIST) == 11
    digests = [digest for known in MEDMNIST.values() for digest in known.md5.values()]
    assert all(set(known.md5) == {28, 64, 128, 224} for known in MEDMNIST.values())
    assert all(len(digest) == 32 and int(digest, 16) for digest in digests)
    assert len(set(digests)) == len(digests)
    assert (file_name("dermamnist", 28), file_name("dermamnist", 64)) == ("dermamnist.npz", "dermamnist_64.npz")
