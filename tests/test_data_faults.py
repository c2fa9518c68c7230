"""Downloads on bad days, from a real server on this machine that misbehaves: the right data or the digits, and soon."""

import contextlib
import errno
import hashlib
import json
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path

import pytest
import torch
from test_data import IMAGES, LABELS, plant

from bnlib import data, load_images

PATIENCE = 1.0  # seconds a mirror gets here, instead of 5
SLACK = 5  # seconds that all the rest may take, on a busy machine


class Handler(BaseHTTPRequestHandler):
    """Serves /<fault>/<file>: the official file, spoilt in the way that `fault` names."""

    def do_GET(self):
        fault, file = self.path.strip("/").split("/")
        self.server.asked.append((fault, file))
        with contextlib.suppress(ConnectionError):  # the client is right to hang up
            getattr(self, fault)((self.server.folder / file).read_bytes())

    def answer(self, content, status=200, length=None, **headers):
        self.send_response(status)
        self.send_header("Content-Length", len(content) if length is None else length)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def drip(self, content):
        for byte in content:
            self.wfile.write(bytes([byte]))
            self.server.closing.wait(0.2)

    def good(self, content):
        """Serve as a store does that calls a .gz "text, compressed" for clients that would unpack it."""
        unpacks = "gzip" in self.headers["Accept-Encoding"]
        self.answer(content, **({"Content-Encoding": "gzip"} if unpacks else {}))

    def steady(self, content):
        self.answer(b"", length=len(content))
        for start in range(0, len(content), 2**14):
            self.wfile.write(content[start : start + 2**14])
            self.server.closing.wait(0.5)

    def together(self, content):
        self.server.pair.wait(timeout=60)
        self.answer(content)

    def silent(self, content):
        self.server.closing.wait(10)

    def slow_head(self, content):
        self.drip(b"HTTP/1.1 200 OK\r\n" + b"X-Wait: 1\r\n" * 1000)

    def slow_drip(self, content):
        self.answer(b"", length=len(content))
        self.drip(content)

    def large_slow_at_the_end(self, content):
        fast = len(content) - 40 if len(content) > 50_000 else len(content)
        self.answer(content[:fast], length=len(content))
        self.drip(content[fast:])

    def cut(self, content):
        self.answer(content[: len(content) // 2], length=len(content))

    def cut_without_length(self, content):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])

    def large_cut(self, content):
        (self.cut if len(content) > 50_000 else self.good)(content)

    def a_page(self, content):
        self.answer(b"<html>Please log in to this network.</html>")

    def nothing(self, content):
        self.answer(b"")

    def wrong_bytes(self, content):
        self.answer(content[:-1] + bytes([content[-1] ^ 1]))

    def unpacked(self, content):
        self.answer(content, **{"Content-Encoding": "gzip"})

    def no_http(self, content):
        self.wfile.write(b"\x00\xff what?\r\n\r\n")

    def endless(self, content):
        self.send_response(200)
        self.end_headers()
        while not self.server.closing.is_set():
            self.wfile.write(content)

    def loop(self, content):
        self.answer(b"", 302, Location=self.path)

    def elsewhere(self, content):
        self.answer(b"", 301, Location=self.path.replace("elsewhere", "good"))

    def not_found(self, content):
        self.answer(content, 404)

    def broken(self, content):
        self.answer(content, 503)

    def log_message(self, *args):
        """Say nothing on stderr."""


SPOILT = (
    "silent", "slow_head", "slow_drip", "large_slow_at_the_end", "cut", "cut_without_length", "large_cut", "a_page",
    "nothing", "wrong_bytes", "unpacked", "no_http", "endless", "loop", "elsewhere", "not_found", "broken",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def loaded():
    """Import what is imported on first use, so that the times below are those of the network."""
    for name in ("pooch", "requests", "sklearn.datasets", "tqdm.auto"):
        import_module(name)


@pytest.fixture
def server(tmp_path, monkeypatch):
    plant(tmp_path / "official", monkeypatch)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.block_on_close = True, False
    server.folder, server.asked, server.closing = tmp_path / "official", [], threading.Event()
    server.pair = threading.Barrier(2)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.closing.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Return the cache's folder; whatever a test did, only whole official files may be left in it."""
    folder = tmp_path / "cache"
    for name in ("BNLIB_DATA", "BNLIB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BNLIB_CACHE", str(folder))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(data, "PATIENCE", PATIENCE)
    yield folder
    if folder.is_dir():
        for path in folder.iterdir():
            assert hashlib.sha256(path.read_bytes()).hexdigest() == data.FILES[path.name].sha256, path.name


@pytest.fixture
def load(server, cache, monkeypatch, capsys):
    """Return load(*faults): the images and the line that mirrors with these faults, in this order, soon lead to."""

    def load(*faults, name="auto"):
        mirrors = [fault if "//" in fault else f"http://127.0.0.1:{server.server_port}/{fault}/" for fault in faults]
        monkeypatch.setattr(data, "MIRRORS", mirrors)
        start = time.monotonic()
        images = load_images(name)
        assert time.monotonic() - start < len(faults) * PATIENCE + SLACK
        out, err = capsys.readouterr()
        assert err == ""
        assert out.count("\n") == 1
        assert str(cache.parent) not in out
        return images, out

    return load


def test_the_mirrors_are_several_and_all_speak_tls():
    assert len(data.MIRRORS) >= 3
    for mirror in data.MIRRORS:
        assert mirror.startswith("https://")
        assert mirror.endswith("/")


def test_a_good_mirror_gives_the_data_and_the_cache_gives_them_again(load, server, cache):
    first, line = load("good")
    assert line == "Data: Fashion-MNIST, downloaded to the cache.\n"
    assert {path.name for path in cache.iterdir()} == set(data.FILES)
    assert [file for _, file in server.asked] == list(data.FILES)
    second, line = load("refused://nobody")
    assert line == "Data: Fashion-MNIST, from the cache.\n"
    assert torch.equal(first.train_images, second.train_images)
    assert len(server.asked) == len(data.FILES)


@pytest.mark.parametrize("fault", SPOILT)
def test_a_spoilt_mirror_alone_leads_to_the_digits(fault, load, server):
    images, line = load(fault)
    assert images.name == "digits"
    assert line.startswith(
        "Data: scikit-learn's handwritten digits, because Fashion-MNIST could not be had "
        f"(127.0.0.1:{server.server_port}: "
    )
    assert {asked for asked, _ in server.asked} == {fault}  # a redirect is not followed


@pytest.mark.parametrize("fault", SPOILT)
def test_after_a_spoilt_mirror_the_next_one_gives_the_data(fault, load, server):
    images, line = load(fault, "good")
    assert images.name == "fashion-mnist"
    assert line == "Data: Fashion-MNIST, downloaded to the cache.\n"
    assert [file for asked, file in server.asked if asked == "good"][-1] == IMAGES
    spoilt = [file for asked, file in server.asked if asked == fault]
    assert len(spoilt) == (4 if "large" in fault else 1)  # a mirror that failed is not asked first again


def test_a_mirror_that_keeps_the_pace_may_take_longer_than_the_patience(load, monkeypatch):
    monkeypatch.setattr(data, "SLOWEST", 10_000)
    start = time.monotonic()
    assert load("steady")[0].name == "fashion-mnist"
    assert time.monotonic() - start > 1.5 * PATIENCE


def test_all_mirrors_spoilt_in_different_ways_are_each_named(load):
    images, line = load("not_found", "a_page", "slow_drip", "cut")
    assert images.name == "digits"
    assert line.count("127.0.0.1") == 4
    for words in ("status 404", "not the official file", "too slow", "ChunkedEncodingError"):
        assert words in line


def test_what_came_before_the_fault_is_kept_and_only_the_rest_is_fetched_later(load, server):
    assert load("large_cut")[0].name == "digits"
    server.asked.clear()
    images, line = load("good")
    assert images.name == "fashion-mnist"
    assert line == "Data: Fashion-MNIST, downloaded to the cache.\n"
    assert server.asked == [("good", IMAGES)]


def test_a_refused_connection_leads_to_the_digits_at_once(load):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    images, line = load(*[f"http://127.0.0.1:{port}/{number}/" for number in range(3)])
    assert images.name == "digits"
    assert "ConnectionError" in line


def test_an_address_that_swallows_every_packet_costs_no_more_than_the_patience(load):
    with socket.socket() as full, contextlib.ExitStack() as queue:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):  # the queue is full: whoever comes now gets no answer at all
            caller = queue.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(full.getsockname())
        images, _ = load(f"http://127.0.0.1:{full.getsockname()[1]}/", "slow_head")
    assert images.name == "digits"


@pytest.mark.parametrize(
    "error", [OSError(errno.ENETUNREACH, "Network is unreachable"), RuntimeError("sockets are blocked")]
)
def test_without_a_route_or_any_socket_the_digits_are_used(error, load, monkeypatch):
    def refuse(self, address):
        raise error

    monkeypatch.setattr(socket.socket, "connect", refuse)
    images, _ = load("good", "good")
    assert images.name == "digits"


def test_a_name_that_nobody_resolves_in_time_costs_no_more_than_the_patience(load, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: time.sleep(10))
    images, line = load("http://fashion.invalid/")
    assert images.name == "digits"
    assert "fashion.invalid: too slow, 0 of" in line


def test_asked_for_by_name_the_data_or_an_error_that_says_what_to_do(load, capsys):
    with pytest.raises(OSError, match=r"could not be had \(127.*404.*point BNLIB_DATA at a folder"):
        load("not_found", name="fashion-mnist")
    assert capsys.readouterr().out == ""
    assert load("not_found", "good", name="fashion-mnist")[0].name == "fashion-mnist"


@pytest.mark.parametrize("harm", ["truncated", "emptied", "one bit", "another file"])
def test_a_file_damaged_in_the_cache_is_named_deleted_and_fetched_again(harm, load, server, cache):
    good, _ = load("good")
    content = bytearray((cache / IMAGES).read_bytes())
    content[len(content) // 2] ^= 1
    spoilt = {
        "truncated": bytes(content[:-1]), "emptied": b"", "one bit": bytes(content),
        "another file": (cache / LABELS).read_bytes(),
    }[harm]  # fmt: skip
    (cache / IMAGES).write_bytes(spoilt)
    server.asked.clear()
    mended, line = load("good")
    assert line == f"Data: Fashion-MNIST, downloaded to the cache; damaged in the cache, so deleted: {IMAGES}.\n"
    assert torch.equal(good.train_images, mended.train_images)
    assert server.asked == [("good", IMAGES)]


def test_a_file_damaged_in_the_cache_is_not_used_without_a_network_either(load, cache):
    load("good")
    (cache / LABELS).write_bytes(b"damaged")
    images, line = load("not_found")
    assert images.name == "digits"
    assert line.endswith(f"status 404); damaged in the cache, so deleted: {LABELS}.\n")
    assert not (cache / LABELS).exists()
    assert (cache / IMAGES).exists()


def test_a_damaged_file_that_cannot_be_deleted_is_not_used(load, cache, monkeypatch):
    load("good")
    whole = (cache / LABELS).read_bytes()
    (cache / LABELS).write_bytes(b"damaged")

    def refuse(self, missing_ok=False):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    with monkeypatch.context() as readonly:
        readonly.setattr(Path, "unlink", refuse)
        images, line = load("good")
    assert images.name == "digits"
    assert "could not be had (cache: Permission denied)" in line
    (cache / LABELS).write_bytes(whole)


def test_a_disk_that_fills_up_leads_to_the_digits_and_leaves_nothing_half_written(load, cache):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))  # the large file has more
    try:
        images, line = load("good")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert images.name == "digits"
    assert "could not be had (cache: File too large)" in line
    assert IMAGES not in os.listdir(cache)


@pytest.mark.parametrize("inside", ["", "below"])
def test_a_cache_that_cannot_be_written_leads_to_the_digits(inside, load, cache, monkeypatch):
    cache.write_text("a file where the folder should be")
    monkeypatch.setenv("BNLIB_CACHE", str(cache / inside))
    images, line = load("good")
    assert images.name == "digits"
    assert "could not be had (cache: " in line


def test_a_home_that_cannot_be_written_leads_to_the_digits(load, tmp_path, monkeypatch):
    (tmp_path / "home").write_text("a file where the folder should be")
    for name in ("BNLIB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert load("good")[0].name == "digits"


def test_two_processes_that_download_at_once_both_get_the_data(server, cache):
    facts = json.dumps({name: list(file) for name, file in data.FILES.items()})
    code = (
        "import json, sys; from bnlib import data; facts, mirror = sys.argv[1:];"
        "data.FILES = {name: data.File(*file) for name, file in json.loads(facts).items()};"
        "data.MIRRORS, data.PATIENCE = [mirror], 60;"
        "print(data.load_images().train_images.sum().item())"
    )
    mirror = f"http://127.0.0.1:{server.server_port}/together/"  # answers when both have asked for the same file
    command = [sys.executable, "-c", code, facts, mirror]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=90) for process in both]
    line = "Data: Fashion-MNIST, downloaded to the cache."
    expected = load_images(root=server.folder).train_images.sum().item()
    assert said == [(f"{line}\n{expected}\n", "")] * 2
    assert {path.name for path in cache.iterdir()} == set(data.FILES)
