"""Headers as a site's node signs them."""

from __future__ import annotations

from base64 import b64encode

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.supercore.date import now
from flwr.supercore.primitives.asymmetric import public_key_to_bytes


def new_key():
    return ec.generate_private_key(ec.SECP384R1())


def signed(key, at=None, *, public=None, signature=None):
    """Return a node's three headers; ``public``: the key's text, ``signature``: that of ``at``, both else the usual."""
    at = at or now().isoformat()
    public = public or public_key_to_bytes(key.public_key())
    signature = signature or key.sign(at.encode(), ec.ECDSA(hashes.SHA256()))
    return {
        "flwr-public-key": b64encode(public).decode(),
        "flwr-timestamp": at,
        "flwr-signature": b64encode(signature).decode(),
    }


def raw(headers):
    """Return headers as they come to an ASGI application."""
    return [(name.encode(), value.encode()) for name, value in headers.items()]
