"""What is asked of Flower's own classes, against answers as the SuperLink gives them."""

from __future__ import annotations

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from flwr.proto import control_pb2
from flwr.supercore.error import ApiErrorCode
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from popmi_core.deployment.bundle import bundle_files, code_hash, unpack
from popmi_core.errors import SetupError
from server.control import flower
from server.control.contract import KeyTaken, RefusedForNow, SuperLinkAway
from server.control.flower import FlowerControl, Refused, pack_bundle

KEY = ec.generate_private_key(ec.SECP384R1()).public_key()


def openssh(key=KEY):
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


@pytest.fixture
def answering(home):
    """Return a function that gives a control plane whose SuperLink answers with a message, a status or an error."""
    made = []

    def answer(told, *, status=200):
        control, asked = FlowerControl("127.0.0.1:1", home.ca), []

        def handle(request):
            asked.append(request)
            if isinstance(told, Exception):
                raise told
            if isinstance(told, dict):
                return httpx.Response(status, json=told)
            return httpx.Response(status, content=told.SerializeToString())

        control._client._client = httpx.Client(transport=httpx.MockTransport(handle))
        control.requests = asked
        made.append(control)
        return control

    yield answer
    for control in made:
        control.close()


def test_a_run_is_started_by_name_with_the_bundle(answering):
    control = answering(control_pb2.StartRunResponse(run_id=7))
    assert control.start_run("first", b"packed") == 7
    asked = control_pb2.StartRunRequest.FromString(control.requests[0].content)
    # Only the name travels: no path of the server reaches a site.
    assert {key: value.string for key, value in asked.override_config.items()} == {"plan": "first"}
    assert asked.fab.content == b"packed"


def test_a_start_without_a_number_is_told(answering):
    with pytest.raises(SetupError, match="did not start run first and gave no reason"):
        answering(control_pb2.StartRunResponse()).start_run("first", b"")


def test_runs_come_newest_first_with_their_names(answering):
    told = control_pb2.ListRunsResponse()
    for run_id, when, status in (
        (1, "2026-01-01", "finished"),
        (2, "2026-01-03", "running"),
        (3, "2026-01-02", "pending"),
    ):
        run = told.run_dict[run_id]
        run.run_id, run.pending_at, run.status.status = run_id, when, status
        if run_id != 3:
            run.override_config["plan"].string = f"run{run_id}"
    told.run_dict[1].status.sub_status, told.run_dict[1].status.details = "failed", "because"
    runs = answering(told).runs()
    assert [(run.run_id, run.name, run.active, run.status) for run in runs] == [
        (2, "run2", True, "running"),
        (3, "", True, "pending"),
        (1, "run1", False, "finished:failed"),
    ]
    assert runs[2].details == "because"


def test_nodes_come_with_their_keys_and_without_those_taken_off(answering):
    told = control_pb2.ListNodesResponse()
    pem = public_key_to_bytes(KEY)
    told.nodes_info.add(
        node_id=1, name="on", status="online", public_key=pem, online_until=1000.0, heartbeat_interval=30.0
    )
    told.nodes_info.add(
        node_id=2, name="off", status="offline", public_key=pem, last_deactivated_at="1970-01-01T00:00:05+00:00"
    )
    told.nodes_info.add(node_id=3, name="new", status="registered", public_key=pem)
    told.nodes_info.add(node_id=4, name="gone", status="unregistered", public_key=pem)
    nodes = answering(told).nodes()
    assert [(node.name, node.online, node.last_seen) for node in nodes] == [
        ("on", True, 940.0),
        ("off", False, 5.0),
        ("new", False, None),
    ]
    assert nodes[0].public_key == openssh()


def test_a_key_is_registered_in_the_form_flower_compares(answering):
    control = answering(control_pb2.RegisterNodeResponse(node_id=9))
    assert control.register("charite", openssh()) == 9
    asked = control_pb2.RegisterNodeRequest.FromString(control.requests[0].content)
    assert (asked.public_key, asked.name) == (public_key_to_bytes(KEY), "charite")


def test_a_key_that_is_taken_is_told_as_such(answering):
    told = {"code": int(ApiErrorCode.PUBLIC_KEY_ALREADY_IN_USE), "detail": "in use"}
    with pytest.raises(KeyTaken, match="cannot register site charite: the SuperLink knows this key already"):
        answering(told, status=409).register("charite", openssh())


def test_a_key_of_another_kind_is_refused(answering):
    key = openssh(ed25519.Ed25519PrivateKey.generate().public_key())
    with pytest.raises(SetupError, match="site charite: its public key is ssh-ed25519, expected an EC key"):
        answering(control_pb2.RegisterNodeResponse()).register("charite", key)


def test_a_key_that_is_none_is_refused(answering):
    with pytest.raises(SetupError, match="site charite: its public key cannot be read"):
        answering(control_pb2.RegisterNodeResponse()).register("charite", "ecdsa-sha2-nistp384 AAAA")


def test_cutting_off_one_who_is_not_there_is_done(answering):
    control = answering({"code": int(ApiErrorCode.NODE_NOT_FOUND), "detail": "none"}, status=404)
    control.unregister(5)
    assert len(control.requests) == 1


def test_stopping_a_run_that_has_ended_is_done(answering):
    control = answering({"code": int(ApiErrorCode.RUN_ALREADY_FINISHED), "detail": "over"}, status=409)
    control.stop_run(5)
    assert len(control.requests) == 1


@pytest.mark.parametrize("call", [lambda c: c.unregister(5), lambda c: c.stop_run(5)])
def test_another_refusal_is_told_with_its_reason(answering, call):
    with pytest.raises(SetupError, match=r"the SuperLink refused \(not allowed\)"):
        call(answering({"code": int(ApiErrorCode.FORBIDDEN_ACTION), "detail": "not allowed"}, status=403))


@pytest.mark.parametrize("status", [408, 425, 429, 500])
def test_a_refusal_that_may_pass_is_told_from_one_that_stays(answering, status):
    with pytest.raises(RefusedForNow, match="cannot register site charite: the SuperLink refused"):
        answering({"detail": "x"}, status=status).register("charite", openssh())


def test_a_refusal_that_stays_is_none_that_passes(answering):
    with pytest.raises(Refused, match="the SuperLink refused"):
        answering({"detail": "x"}, status=412).register("charite", openssh())


def test_a_refusal_in_no_words_is_told_by_its_number(answering):
    with pytest.raises(SetupError, match=r"the SuperLink refused \(HTTP status 500\)"):
        answering({"detail": "x"}, status=500).runs()


def test_a_superlink_that_does_not_answer_is_away(answering):
    with pytest.raises(SuperLinkAway, match=r"the SuperLink at 127.0.0.1:1 does not answer"):
        answering(httpx.ConnectError("refused")).runs()


def test_a_superlink_that_is_not_ready_is_away(answering):
    with pytest.raises(SuperLinkAway, match="not ready"):
        answering({}, status=503).nodes()


def test_without_an_authority_nothing_is_asked(tmp_path):
    with pytest.raises(SetupError, match=r"cannot read .*ca.pem"):
        FlowerControl("127.0.0.1:1", tmp_path / "ca.pem")


def test_what_flower_packs_is_what_is_approved():
    packed, approved = pack_bundle()
    assert unpack(packed) == bundle_files()
    assert code_hash(unpack(packed)) == approved
    assert not any(path.startswith("server") for path in bundle_files())


def test_a_bundle_that_flower_changed_is_refused(monkeypatch):
    monkeypatch.setattr(flower, "bundle_files", lambda: {**bundle_files(), "client/data.bin": b"left out"})
    with pytest.raises(SetupError, match="Flower changed a file of it"):
        pack_bundle()
