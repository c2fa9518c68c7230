"""`make lab`, for real: who can reach the server, and who is let in."""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def lab(tmp_path):
    """What a server started by `make lab` notes down about itself, with no settings of the user's."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kinds = ("CONFIG", "DATA", "RUNTIME")
    home = {"HOME": str(tmp_path), **{f"JUPYTER_{kind}_DIR": str(tmp_path / kind) for kind in kinds}}
    plain = {name: value for name, value in os.environ.items() if not name.startswith("JUPYTER")}
    command = ["make", "lab", f"LAB=--no-browser --port={port}"]
    with open(tmp_path / "log", "w") as log:
        make = subprocess.Popen(command, cwd=ROOT, env=plain | home, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while not (notes := list((tmp_path / "RUNTIME").glob("jpserver-*.json"))):
            if make.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"make lab does not serve:\n{(tmp_path / 'log').read_text()}")
            time.sleep(0.2)
        yield json.loads(notes[0].read_text())
    finally:
        os.killpg(make.pid, signal.SIGKILL)
        make.wait()


def status(url):
    """Return the HTTP status with which the server answers."""
    try:
        return urllib.request.urlopen(url, timeout=20).status
    except urllib.error.HTTPError as error:
        return error.code


def test_the_lab_listens_on_loopback_only_and_lets_in_who_has_the_token(lab):
    listening = {c.laddr.ip for c in psutil.Process(lab["pid"]).net_connections("tcp") if c.status == "LISTEN"}
    assert listening == {"127.0.0.1"}
    assert len(lab["token"]) >= 40
    assert not lab["password"]
    contents = f"{lab['url']}api/contents"
    assert status(contents) == 403
    assert status(f"{contents}?token={'0' * 48}") == 403
    assert status(f"{contents}?token={lab['token']}") == 200


def test_the_lab_asks_no_question_about_news_and_fetches_none(lab):
    name = "@jupyterlab/apputils-extension:notification"
    with urllib.request.urlopen(f"{lab['url']}lab/api/settings/{name}?token={lab['token']}", timeout=20) as answer:
        defaults = json.load(answer)["schema"]["properties"]
    assert defaults["fetchNews"]["default"] == "false"  # "none", the usual one, asks
    assert defaults["checkForUpdates"]["default"] is False
