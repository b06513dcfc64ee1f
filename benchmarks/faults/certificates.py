"""Case 15: another authority, another name, an expired certificate; what the person sees, and what arrives at all."""

from __future__ import annotations

import json
import ssl
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Any

from keys import TOLD_WITHIN, UNREACHABLE, said
from stage import ROOT, Stage

sys.path.append(str(ROOT / "tests" / "support"))
from site_parts import Authority, make_home, make_kit

from client.site.home import SiteHome

KIT, BETWEEN = "the kit's authority", "a device in between"
CASES: dict[str, tuple[str, dict[str, Any], str]] = {
    "another authority": (BETWEEN, {}, "certificate chain"),
    "another name": (KIT, {"host": "other.example.org"}, "certificate name"),
    "an expired certificate": (KIT, {"begin": -60, "end": -3}, "certificate dates"),
    "a good certificate (what the stand-in sees then)": (KIT, {}, ""),
}
"""Who signs, what is wrong with it, and the doctor's finding that must fail; nothing for the control."""
HARMLESS = "GET /health HTTP/1.1"
"""The doctor asks even a stranger for the time, so that a clock that is off does not look like a bad certificate."""


@dataclass
class StandIn:
    """A server in the gateway's place: where it listens, and the first line of every request that came through TLS."""

    port: int = 0
    handshakes_failed: int = 0
    came: list[str] = field(default_factory=list)


@dataclass
class Played:
    """One certificate being played."""

    what: str
    finding: str
    server: StandIn
    home: SiteHome


def play(stage: Stage) -> None:
    """Ask the doctor about each certificate, then run all sites at once until each has noted why it is not answered."""
    authorities = {name: Authority(name) for name in (KIT, BETWEEN)}
    with ExitStack() as open_:
        played = []
        for number, (what, (signer, options, finding)) in enumerate(CASES.items()):
            name = f"tls-{number}"
            made = authorities[signer].sign(stage.machine.folder / "tls" / name, **options)
            server = open_.enter_context(answering(*made))
            kit = make_kit(site=name, endpoint=f"localhost:{server.port}", ca_pem=authorities[KIT].pem)
            played.append(Played(what, finding, server, make_home(stage.machine.site(name).folder, kit)))
        for item in played[:-1]:
            ask_doctor(stage, item)
        stage.mark()
        for item in played:
            item.server.came.clear()
            item.server.handshakes_failed = 0
            stage.machine.run_site(item.home.folder.name)
        for item in played:
            note_run(stage, item)
        for item in played:
            stage.machine.stop(item.home.folder.name)


def ask_doctor(stage: Stage, item: Played) -> None:
    """Note what `popmi site doctor` says of a certificate."""
    done = stage.machine.popmi("site", "doctor", "--json", "--home", str(item.home.folder), expect=1)
    found = next(one for one in json.loads(done.stdout)["findings"] if one["name"] == item.finding)
    stage.note(
        "15",
        item.what,
        "`popmi site doctor` against a server with such a certificate",
        f"{found['found']} -> {found['remedy']}",
        arrived(item.server.came),
        good=found["state"] == "failed" and nothing_of_ours(item.server.came),
        audit=[stage.event("doctor", at=item.home, says=item.finding)],
    )


def note_run(stage: Stage, item: Played) -> None:
    """Note what `popmi site run` does beside such a server; of a good certificate, that its requests do arrive."""
    if not item.finding:
        seen = any("/v1/fleet/" in line for line in item.server.came)
        stage.note(
            "15", item.what, "`popmi site run` against a server with a good certificate", arrived(item.server.came),
            "requests of the fleet came through", good=seen, audit=None,
        )  # fmt: skip
        return
    event = stage.event(UNREACHABLE, at=item.home, says=item.finding, wait=TOLD_WITHIN)
    stage.note(
        "15",
        item.what,
        f"`popmi site run` against such a server; {item.server.handshakes_failed} handshakes broken off",
        said(item.home),
        arrived(item.server.came),
        good=bool(event) and nothing_of_ours(item.server.came) and item.server.handshakes_failed > 0,
        audit=[event],
    )


def arrived(came: Sequence[str]) -> str:
    """Return what came through TLS, each request once with its number."""
    told = [f"{came.count(line)} x {line}" for line in dict.fromkeys(came)]
    return f"what arrived: {', '.join(told)}" if told else "nothing arrived"


def nothing_of_ours(came: Sequence[str]) -> bool:
    """Return whether nothing but the question for the time came: no key, no name of a site, no tensor."""
    return all(line == HARMLESS for line in came)


@contextmanager
def answering(certificate: Path, key: Path) -> Iterator[StandIn]:
    """Answer "ok" over TLS, and keep the first line of whatever comes."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    seen = StandIn()

    class Answer(StreamRequestHandler):
        def handle(self) -> None:
            try:
                secured = context.wrap_socket(self.request, server_side=True)
            except (OSError, ssl.SSLError):
                seen.handshakes_failed += 1
                return
            try:
                with secured:
                    if got := secured.recv(4096):
                        seen.came.append(got.partition(b"\r\n")[0].decode(errors="replace")[:80])
                        secured.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
            except (OSError, ssl.SSLError):
                return

    with ThreadingTCPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        seen.port = server.server_address[1]
        yield seen
        server.shutdown()
