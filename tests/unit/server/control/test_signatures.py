"""A node's signature counts once, whoever sends it again."""

from __future__ import annotations

import asyncio
import logging
from base64 import b64decode, b64encode
from datetime import timedelta

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fake_superlink import PULL, FakeSuperLink, ask_raw, behind
from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.date import now
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, public_key_to_bytes, verify_signature
from signed_requests import new_key, raw, signed

from popmi_core.deployment.enrolment import fingerprint
from server.control.gateway import NOT_TAKEN
from server.control.refusals import Refusals
from server.control.signatures import (
    KEPT,
    KEY_HEADER,
    KEY_LENGTH,
    SIGNATURE_HEADER,
    TIME_HEADER,
    Signatures,
    UnusableKey,
    pair_of,
)  # fmt: skip

KEY = new_key()
AGAIN = 503
# The order of P-384's group (FIPS 186-4, D.1.2.4).
ORDER = int(
    "39402006196394479212279040100143613805079739270465446667946905279627659399113263569398956308152294913554433653942643"
)


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def sent(gateway, headers, *, target=PULL, content=b"question", client=("198.51.100.7", 5)):
    return ask_raw(gateway, target.encode(), headers=raw(headers), pieces=[content], client=client)["status"]


def spelled(key, *, width=64, before=""):
    """Return the same public key as another PEM text."""
    lines = public_key_to_bytes(key.public_key()).decode().splitlines()
    body = "".join(lines[1:-1])
    cut = [body[begin : begin + width] for begin in range(0, len(body), width)]
    return (before + "\n".join([lines[0], *cut, lines[-1]]) + "\n").encode()


def text_of(key):
    return b64encode(public_key_to_bytes(key.public_key())).decode()


def test_headers_and_window_are_those_of_the_installed_flower():
    assert (KEY_HEADER, TIME_HEADER) == (FLEET_HTTP_PUBLIC_KEY_HEADER, TIMESTAMP_HEADER)
    assert SIGNATURE_HEADER == FLEET_HTTP_SIGNATURE_HEADER
    # One that is nearly 5 s ahead when it is taken is good until it is 305 s old.
    assert KEPT == SYSTEM_TIME_TOLERANCE + TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE


@pytest.mark.parametrize("target", [PULL, "/v1/fleet/push-messages", "/v1/fleet/deactivate-node"])
@pytest.mark.parametrize("content", [b"question", b"another"])
def test_a_signature_that_was_used_is_refused_on_every_path_with_every_body(target, content):
    superlink, headers = FakeSuperLink(), signed(KEY)
    gateway = behind(superlink)
    assert sent(gateway, headers) == 200
    assert sent(gateway, headers, target=target, content=content) == AGAIN
    assert sent(gateway, headers, target=target, content=content, client=("203.0.113.9", 5)) == AGAIN
    assert len(superlink.seen) == 1


def test_another_signature_of_the_same_time_is_refused():
    at = now().isoformat()
    gateway = behind(FakeSuperLink())
    assert sent(gateway, signed(KEY, at)) == 200
    assert sent(gateway, signed(KEY, at)) == AGAIN


def test_a_signature_that_was_rewritten_into_another_that_holds_is_refused():
    at = now().isoformat()
    headers = signed(KEY, at)
    first, second = decode_dss_signature(b64decode(headers["flwr-signature"]))
    other = encode_dss_signature(first, ORDER - second)
    # The SuperLink would take it.
    assert verify_signature(KEY.public_key(), at.encode(), other)
    gateway = behind(FakeSuperLink())
    assert sent(gateway, headers) == 200
    assert sent(gateway, signed(KEY, at, signature=other)) == AGAIN


@pytest.mark.parametrize(
    "other",
    [spelled(KEY, width=48), spelled(KEY, before="a word before\n"), spelled(KEY) + b"\n \n",
     KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).replace(b"\n", b"\r\n")],
)  # fmt: skip
def test_the_same_key_in_another_spelling_is_the_same_key(other):
    # Flower's reader takes each of them for this key.
    assert bytes_to_public_key(other) == KEY.public_key()
    at = now().isoformat()
    gateway = behind(FakeSuperLink())
    assert sent(gateway, signed(KEY, at)) == 200
    assert sent(gateway, signed(KEY, at, public=other)) == AGAIN


def test_the_same_bytes_in_another_base64_are_the_same_key():
    # One byte of padding leaves bits that no decoder looks at.
    text = next(
        made for made in (b64encode(spelled(KEY) + b" " * extra).decode() for extra in range(3)) if made[-1] == "="
    )
    bits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    place = len(text.rstrip("=")) - 1
    other = text[:place] + bits[bits.index(text[place]) + 1] + text[place + 1 :]
    headers = signed(KEY)
    assert pair_of({**headers, KEY_HEADER: other}) == pair_of({**headers, KEY_HEADER: text}) == pair_of(headers)


def test_other_times_and_other_keys_pass():
    at, gateway = now(), behind(FakeSuperLink())
    times = [(at + timedelta(microseconds=number)).isoformat() for number in range(3)]
    assert [sent(gateway, signed(key, time)) for time in times for key in (KEY, new_key())] == [200] * 6


@pytest.mark.parametrize("status", NOT_TAKEN)
def test_what_the_superlink_refuses_uses_nothing_up(status):
    superlink, headers = FakeSuperLink(status), signed(KEY)
    gateway = behind(superlink)
    assert sent(gateway, headers) == status
    superlink.status = 200
    assert sent(gateway, headers) == 200
    assert sent(gateway, headers) == AGAIN


@pytest.mark.parametrize("status", [200, 403, 404, 409, 500, 503])
def test_what_passed_the_superlinks_look_at_the_key_is_used_up(status):
    superlink, headers = FakeSuperLink(status), signed(KEY)
    gateway = behind(superlink)
    assert [sent(gateway, headers) for _ in range(2)] == [status, AGAIN]
    assert len(superlink.seen) == 1


@pytest.mark.parametrize(
    ("error", "used"),
    [(httpx.ConnectError, False), (httpx.ConnectTimeout, False), (httpx.PoolTimeout, False), (httpx.ReadError, True),
     (httpx.ReadTimeout, True), (httpx.WriteError, True), (httpx.RemoteProtocolError, True)],
)  # fmt: skip
def test_a_request_whose_answer_was_lost_counts_and_one_that_never_arrived_does_not(error, used):
    class Upstream(httpx.AsyncBaseTransport):
        failing = True

        async def handle_async_request(self, request):
            async for _ in request.stream:
                pass
            if self.failing:
                raise error("no", request=request)
            return httpx.Response(200, stream=httpx.ByteStream(b""))

    upstream, headers = Upstream(), signed(KEY)
    gateway = behind(upstream)
    assert sent(gateway, headers) == 503
    upstream.failing = False
    assert sent(gateway, headers) == (AGAIN if used else 200)


def test_a_body_that_is_too_large_or_stops_coming_uses_nothing_up():
    superlink, headers = FakeSuperLink(), signed(KEY)
    gateway = behind(superlink, body_limit=10)
    assert sent(gateway, {**headers, "transfer-encoding": "chunked"}, content=b"12345678901") == 413
    assert sent(gateway, {**headers, "content-length": "11"}) == 413
    assert sent(gateway, headers, content=b"1234567890") == 200


def test_of_two_at_once_one_passes():
    headers, seen = raw(signed(KEY)), []

    async def both():
        answered = asyncio.Event()

        async def superlink(scope, receive, send):
            seen.append(scope["raw_path"])
            # The first is under way until the second has its answer.
            await asyncio.wait_for(answered.wait(), 20)
            await FakeSuperLink()(scope, receive, send)

        async def asked(client):
            answer = await client.post(PULL, headers=headers, content=b"q")
            answered.set()
            return answer.status_code

        through = httpx.ASGITransport(behind(superlink))
        async with httpx.AsyncClient(transport=through, base_url="https://gateway") as client:
            return await asyncio.gather(asked(client), asked(client))

    assert sorted(asyncio.run(both())) == [200, AGAIN]
    assert len(seen) == 1


def test_a_used_signature_is_counted_and_told_in_the_log(caplog):
    gateway, headers = behind(FakeSuperLink(), refusals=Refusals(limit=2, clock=Clock())), signed(KEY)
    sent(gateway, headers)
    with caplog.at_level(logging.WARNING):
        thief = [sent(gateway, headers, client=("203.0.113.9", 5)) for _ in range(3)]
    assert thief == [AGAIN, AGAIN, 429]
    mine = fingerprint(KEY.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode())
    assert f"refused from 203.0.113.9: a signature of key {mine} was used before" in caplog.text
    # The site itself goes on from where it always asked.
    assert sent(gateway, signed(KEY)) == 200


@pytest.mark.parametrize(
    ("public", "match"),
    [
        ("no base64!", "holds no public key"), ("\xe9", "holds no public key"),
        (b64encode(b"no PEM").decode(), "holds no public key"), ("", "holds no public key"),
        (b64encode(spelled(KEY, before="x" * 1000)).decode(), f"expected at most {KEY_LENGTH}"),
        (text_of(ed25519.Ed25519PrivateKey.generate()), "another key than"),
        (text_of(ec.generate_private_key(ec.SECP256K1())), "another key than"),
    ],
)  # fmt: skip
def test_a_key_that_no_node_has_is_refused_without_asking_the_superlink(public, match):
    headers = {**signed(KEY), KEY_HEADER: public}
    with pytest.raises(UnusableKey, match=match):
        pair_of(headers)
    superlink = FakeSuperLink()
    headers = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    assert ask_raw(behind(superlink), PULL.encode(), headers=headers)["status"] == 401
    assert superlink.seen == []


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_every_curve_that_flower_takes_has_keys_short_enough(curve):
    assert pair_of(signed(ec.generate_private_key(curve))) is not None


@pytest.mark.parametrize("missing", [KEY_HEADER, TIME_HEADER, SIGNATURE_HEADER])
def test_what_is_not_signed_is_left_to_the_superlink_which_refuses_it(missing):
    headers = signed(KEY)
    del headers[missing]
    gateway = behind(FakeSuperLink(401))
    assert [sent(gateway, headers) for _ in range(2)] == [401, 401]


def test_of_a_header_sent_twice_the_one_that_is_passed_on_is_the_one_that_counts():
    superlink, used, fresh = FakeSuperLink(), signed(KEY), signed(KEY)
    gateway = behind(superlink)
    assert sent(gateway, used) == 200
    for first, last in ((fresh, used), (used, fresh)):
        status = ask_raw(gateway, PULL.encode(), headers=[*raw(first), *raw(last)])["status"]
        assert status == (AGAIN if last is used else 200)
    assert superlink.seen[-1][2][b"flwr-timestamp"] == fresh["flwr-timestamp"].encode()


def test_what_is_remembered_ends_and_leaves_nothing():
    clock = Clock()
    used, pair = Signatures(clock=clock), pair_of(signed(KEY))
    assert used.begin(pair)
    clock.now += 600
    assert not used.begin(pair)
    used.end(pair, taken=True)
    clock.now += KEPT - 0.1
    assert not used.begin(pair)
    clock.now += 0.1
    assert used.begin(pair)
    used.end(pair, taken=False)
    assert (used._used, used._under_way, list(used._order)) == ({}, set(), [])


def test_one_who_asks_without_measure_fills_his_own_share_and_nobody_elses():
    clock = Clock()
    used, other = Signatures(limit=3, clock=clock), new_key()
    for _ in range(3):
        pair = pair_of(signed(KEY))
        assert used.begin(pair)
        used.end(pair, taken=True)
    assert not used.begin(pair_of(signed(KEY)))
    assert used.begin(pair_of(signed(other)))
    clock.now += KEPT
    assert used.begin(pair_of(signed(KEY)))


def test_one_without_a_key_that_was_let_in_fills_no_memory():
    gateway = behind(FakeSuperLink(401), refusals=Refusals(limit=1000))
    for _ in range(50):
        sent(gateway, signed(new_key()))
    assert (gateway.signatures._used, gateway.signatures._under_way) == ({}, set())
