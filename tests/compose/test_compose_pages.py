"""The pages in their own slim image: signed in over restarts, nothing of the centre in reach, acts carried out."""

from __future__ import annotations

import hashlib
import json
import re
import urllib.error
import urllib.request
from typing import Any

import pytest

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1800)]
MODEL = "compose/models/round-002.safetensors"


@pytest.fixture(scope="module")
def run(stage: Any) -> dict[str, Any]:
    """The first run's head, once it has ended."""
    head = stage.finished()
    assert head["status"] == "finished", head
    return dict(head)


def status_of(url: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_the_pages_run_without_torch_and_flower_and_hold_no_installer(stage: Any, run: dict[str, Any]) -> None:
    code = """
import importlib.util as i, json, pathlib, sys
found = [name for name in ("torch", "flwr", "timm", "opacus", "ray", "pip", "uv") if i.find_spec(name)]
size = sum(file.stat().st_size for file in pathlib.Path(sys.prefix).rglob("*") if file.is_file())
print(json.dumps({"found": found, "megabytes": size // 1_000_000}))
"""
    told = json.loads(stage.python("dashboard", code))
    assert told["found"] == []
    # With torch and Flower it would be thousands.
    assert told["megabytes"] < 300


def test_nobody_sees_anything_without_signing_in(stage: Any, run: dict[str, Any]) -> None:
    assert status_of(f"{stage.url}/api/v1/runs") == 401
    assert status_of(f"{stage.url}/api/v1/runs", Authorization="Bearer popmi_guessed") == 401
    with urllib.request.urlopen(f"{stage.url}/", timeout=10) as answer:
        assert "/login" in answer.url
        assert b"compose" not in answer.read().partition(b"<main")[2].partition(b"</main")[0]
    assert status_of(f"{stage.url}/healthz") == 200


def test_the_link_of_the_first_admin_works_once(stage: Any, run: dict[str, Any]) -> None:
    stage.ask("/")
    for key in re.findall(r"/first\?key=([\w-]+)", stage.compose("logs", "--no-color", "dashboard")):
        assert status_of(f"{stage.url}/first?key={key}") == 404


def test_who_is_signed_in_stays_so_when_the_pages_start_again(stage: Any, run: dict[str, Any]) -> None:
    assert json.loads(stage.ask("/api/v1/runs"))
    stage.compose("restart", "dashboard")
    runs = stage.until("the pages are back", lambda: json.loads(stage.browse("/api/v1/runs")))
    assert runs[0]["name"] == "compose"


def test_models_are_read_from_the_runs_volume_and_cannot_be_changed_there(stage: Any, run: dict[str, Any]) -> None:
    recorded = stage.api(f"/runs/{run['key']}/rounds")[-1]["model_sha256"]
    code = f"import hashlib, pathlib; print(hashlib.sha256(pathlib.Path('/runs/{MODEL}').read_bytes()).hexdigest())"
    assert stage.python("dashboard", code) == recorded
    code = f"""
import os
for act in (lambda: os.unlink('/runs/{MODEL}'), lambda: os.mkdir('/runs/x'), lambda: os.listdir('/home/popmi/server')):
    try:
        act()
        print("done")
    except OSError as error:
        print(type(error).__name__)
"""
    assert stage.python("dashboard", code).split() == ["OSError", "OSError", "FileNotFoundError"]


def test_a_model_is_downloaded_whole(stage: Any, run: dict[str, Any]) -> None:
    recorded = stage.api(f"/runs/{run['key']}/rounds")[-1]["model_sha256"]
    page = stage.ask(f"/models/{run['key']}/2").decode()
    assert recorded in page
    link = next(found for found in re.findall(r'href="([^"]+)"', page) if found.endswith(".safetensors"))
    assert hashlib.sha256(stage.ask(link)).hexdigest() == recorded


def token_of(stage: Any, name: str, role: str) -> dict[str, str]:
    """Make an account and a token on the command line; return the token as a header."""
    stage.ask("/")
    account = ("exec", "-T", "dashboard", "popmi", "server", "account")
    stage.compose(*account, "add", name, "--role", role, "--password-file", "-", said="another long sentence\n")
    told = stage.compose(*account, "token", name, "--name", "ci", "--days", "1", "--role", role)
    token = re.search(r"popmi_[\w-]+", told)
    assert token is not None, told
    return {"Authorization": f"Bearer {token.group()}"}


def test_a_token_made_on_the_command_line_reads_and_does_no_more(stage: Any, run: dict[str, Any]) -> None:
    robot = token_of(stage, "robot", "viewer")
    assert status_of(f"{stage.url}/api/v1/runs", **robot) == 200
    assert give(stage, robot, "stop", run="compose")[0] == 403


def give(stage: Any, who: dict[str, str], kind: str, **arguments: Any) -> tuple[int, dict[str, Any]]:
    """Give an order; return the answer's status and body."""
    request = urllib.request.Request(
        f"{stage.url}/api/v1/orders",
        data=json.dumps({"kind": kind, "arguments": arguments}).encode(),
        headers={**who, "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, {}


def test_the_keeper_writes_a_model_as_onnx_that_the_pages_ordered_and_hand_out(stage: Any, run: dict[str, Any]) -> None:
    operator = token_of(stage, "lin", "operator")
    status, order = give(stage, operator, "onnx", run="compose", round=2)
    assert status == 202

    def decided() -> dict[str, Any] | None:
        found = stage.api(f"/orders/{order['id']}")
        return dict(found) if found["state"] != "waiting" else None

    answered = stage.until("the keeper answers", decided)
    assert answered["state"] == "done", answered
    path = "/home/popmi/server/runs/compose/models/round-002.onnx.json"
    sheet = json.loads(stage.python("keeper", f"print(open({path!r}).read())"))
    assert hashlib.sha256(stage.ask(f"/models/{run['key']}/2/model.onnx")).hexdigest() == sheet["sha256"]
    log = stage.compose("exec", "-T", "keeper", "cat", "/home/popmi/server/audit.jsonl")
    assert '"model.onnx"' in log
    assert '"lin"' in log
