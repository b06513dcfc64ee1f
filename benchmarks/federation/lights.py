"""Many light sites in one process: they speak Flower's fleet protocol with a key each, and answer without training.

Light means: no images, no torch. `join` tells a made-up number of images; `train` sends the broadcast model back with a
small seeded change; `evaluate` says that there is no validation image. Everything on the wire is as a real site's.

    python benchmarks/federation/lights.py SITES.json CA.pem DIARY.jsonl
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, no_object_id_recompute
from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree, push_objects
from flwr.supernode.fleet_http_connection import http_request_response

from client.reply import is_packed, packed, unpacked
from popmi_core.protocol import INSTRUCTION, JSON_KEY, MODEL, REPORT, Instruction, Report, derive_seed

IMAGES = 100
SOONEST, LATEST = 0.3, 3.0
"""Seconds between two looks for a question: a fifth of the time waited so far, as a real site's node."""
AT_ONCE = threading.Semaphore(8)
"""So many answers are in the making at once: the models of a hundred sites need not lie in one process."""


class Light:
    """One site.

    Args:
        site: Its name.
        endpoint: ``host:port`` at which it reaches the gateway.
        key: Its private key.
        ca: The authority's certificate.
        tell: Gets a line of the diary.
    """

    def __init__(
        self,
        site: str,
        endpoint: str,
        key: ec.EllipticCurvePrivateKey,
        ca: bytes,
        tell: Callable[[dict[str, Any]], None],
    ) -> None:
        self.site, self.endpoint, self.key, self.ca, self.tell = site, endpoint, key, ca, tell

    def live(self) -> None:
        """Answer for ever."""
        keys = (self.key, self.key.public_key())
        with http_request_response(self.endpoint, False, self.ca, keys) as connection:
            receive, send, pull, push, confirm = (connection[place] for place in (1, 2, 5, 6, 7))
            begun = time.monotonic()
            while True:
                got = receive()
                if got is None:
                    time.sleep(min(max((time.monotonic() - begun) / 5, SOONEST), LATEST))
                    continue
                with AT_ONCE:
                    self._serve(*got, send, pull, push, confirm)
                begun = time.monotonic()

    def _serve(self, message: Message, tree: Any, send: Any, pull: Any, push: Any, confirm: Any) -> None:
        begun, run_id = time.time(), message.metadata.run_id
        asked = pull_and_inflate_object_from_tree(
            tree, partial(pull, run_id), partial(confirm, run_id), return_type=Message
        )
        asked.metadata.__dict__["_message_id"] = tree.object_id
        pulled = time.time()
        reply = answer(asked, self.site)
        reply.metadata.__dict__["_message_id"] = reply.object_id
        made = time.time()
        with no_object_id_recompute():
            wanted, session = send(reply, get_object_tree(reply), 0.0)
            push_objects(get_all_nested_objects(reply), partial(push, run_id, session), object_ids_to_push=wanted)
        self.tell({
            "site": self.site, "kind": asked.metadata.message_type, "round": asked.metadata.group_id, "begun": begun,
            "pulled": pulled - begun, "answered": made - pulled, "pushed": time.time() - made, "objects": len(wanted),
        })  # fmt: skip


def answer(message: Message, site: str) -> Message:
    """Return a valid answer to any question of a plain run."""
    asked = Instruction.model_validate_json(str(message.content.config_records[INSTRUCTION][JSON_KEY]))
    training = message.metadata.message_type == "train"
    report = Report(
        run=asked.run, server_round=asked.server_round, site=site, nonce=asked.nonce, num_examples=IMAGES, phantom=True,
        split_sizes={"val": 0, "test": 0}, metrics={"train.loss": 1.0} if training else {},
    )  # fmt: skip
    records: dict[str, Any] = {REPORT: ConfigRecord({JSON_KEY: report.model_dump_json()})}
    if training:
        model = unpacked(message.content).array_records[MODEL]
        records[MODEL] = changed(model, derive_seed(site, asked.server_round))
    content = RecordDict(records)
    return Message(packed(content) if is_packed(message) else content, reply_to=message)


def changed(model: ArrayRecord, seed: int) -> ArrayRecord:
    """Return the model with a small random change of every floating-point number."""
    random, found = np.random.default_rng(seed), ArrayRecord()
    for name in sorted(model):
        array = model[name].numpy()
        if array.dtype.kind == "f":
            array = array + 1e-4 * random.standard_normal(array.shape, dtype=np.float32).astype(array.dtype)
        found[name] = Array(array)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sites", type=Path, help='JSON: {NAME: {"endpoint": HOST:PORT, "key": PEM}}')
    parser.add_argument("ca", type=Path)
    parser.add_argument("diary", type=Path)
    given = parser.parse_args()
    lock = threading.Lock()

    def tell(line: dict[str, Any]) -> None:
        with lock, given.diary.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    for site, told in json.loads(given.sites.read_text()).items():
        key = serialization.load_pem_private_key(told["key"].encode(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        light = Light(site, told["endpoint"], key, given.ca.read_bytes(), tell)
        threading.Thread(target=light.live, name=site, daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    threading.Event().wait()


if __name__ == "__main__":
    main()
