"""Let a node's signature count once: Flower's covers a time and a key, and neither the path nor what is asked.

Flower 1.41 (`superlink/routers/fleet/node_auth.py`) believes whoever shows a key, a time at most 300 s old and that
key's signature of the time. Who sees the three once could speak for the node on every path until they are too old. A
node signs a time of its own for every request and every retry, down to the microsecond, so a time that comes again is
either stolen or the one of two threads of a node that signed in the same microsecond. Both are told to ask again: the
node then signs anew, and one who stole cannot.

**What is remembered.** A pair of key and time counts as used while its request is under way, so that two at once do not
both pass, and afterwards only if the SuperLink took the request. Remembering every pair would let an intruder without
any key fill the memory, or use up times that a node will sign; so he can hold one of them for the length of a refused
request, would have to guess its microsecond, and costs the node one retry. What the SuperLink took carries a key that
the operator let in, so there are as many keys as sites; one whose holder asks without measure fills its own share, and
only that site is told to wait. Whether a request was taken whose answer was lost nobody knows: it counts as taken.

**What a pair is.** The key in OpenSSH's form, which has one spelling, and a hash of the time's text: what was signed.
Not the signature, which can be rewritten into another one that holds (ECDSA), nor the header's text, of which there are
many for one key.
"""

from __future__ import annotations

import time
from base64 import b64decode
from collections import deque
from collections.abc import Callable, Mapping
from functools import lru_cache
from hashlib import blake2b

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from popmi_core.deployment.enrolment import fingerprint

KEY_HEADER, TIME_HEADER, SIGNATURE_HEADER = "flwr-public-key", "flwr-timestamp", "flwr-signature"
KEPT = 310.0
"""Seconds after its answer for which a pair is remembered. Flower takes a time that is less than 5 s ahead and less
than 305 s old, so one that it took now is too old by then."""
LIMIT = 200_000
"""Pairs remembered of one key: 640 requests a second, all the time; a node sends two objects at once at most."""
KEY_LENGTH = 1_000
"""Characters of a key's header at most; that of a P-521 key has 360."""
CURVES = ("secp256r1", "secp384r1", "secp521r1")
"""Of keys that can be enrolled, since only these have a form in OpenSSH."""
Pair = tuple[bytes, bytes]


class UnusableKey(ValueError):
    """A request names a key that no node can have."""


def pair_of(headers: Mapping[str, str]) -> Pair | None:
    """Return the key and the signed time that a request's headers show; None where it is not signed.

    Raises:
        UnusableKey: If the key is none that can be enrolled.
    """
    if any(name not in headers for name in (KEY_HEADER, TIME_HEADER, SIGNATURE_HEADER)):
        return None
    return _key(headers[KEY_HEADER]), blake2b(headers[TIME_HEADER].encode(), digest_size=16).digest()


def key_of(pair: Pair) -> str:
    """Return the key's fingerprint, as `popmi server sites` shows it."""
    return fingerprint(pair[0].decode())


class Signatures:
    """The pairs of key and time that were used.

    Args:
        limit: Pairs remembered of one key.
        clock: Seconds that never go back.
    """

    def __init__(self, limit: int = LIMIT, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit, self._clock = limit, clock
        self._under_way: set[Pair] = set()
        self._used: dict[bytes, set[bytes]] = {}
        self._order: deque[tuple[float, Pair]] = deque()

    def begin(self, pair: Pair) -> bool:
        """Return whether a request with this pair may pass, which is then under way; ``end`` must follow."""
        self._forget()
        used = self._used.get(pair[0], ())
        if pair in self._under_way or pair[1] in used or len(used) >= self.limit:
            return False
        self._under_way.add(pair)
        return True

    def end(self, pair: Pair, *, taken: bool) -> None:
        """Note that the request is answered; ``taken``: by the SuperLink, or nobody knows."""
        self._under_way.discard(pair)
        if taken:
            self._used.setdefault(pair[0], set()).add(pair[1])
            self._order.append((self._clock() + KEPT, pair))

    def _forget(self) -> None:
        now = self._clock()
        while self._order and self._order[0][0] <= now:
            _, (key, signed) = self._order.popleft()
            self._used[key].discard(signed)
            if not self._used[key]:
                del self._used[key]


# A node shows the same text in every request; a key is read in a fraction of a millisecond.
@lru_cache(maxsize=1024)
def _key(header: str) -> bytes:
    if len(header) > KEY_LENGTH:
        raise UnusableKey(f"the header {KEY_HEADER} has {len(header)} characters, expected at most {KEY_LENGTH}")
    try:
        key = load_pem_public_key(b64decode(header, validate=True))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UnusableKey(f"the header {KEY_HEADER} holds no public key, expected base64 of PEM") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in CURVES:
        raise UnusableKey(f"the header {KEY_HEADER} holds another key than a node's, expected one of {CURVES}")
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
