"""Find the server's and the client's parts by name, as Flower does: the library never imports them."""

from __future__ import annotations

import importlib
from typing import Any

from popmi_core.errors import ConfigError

SERVER_APP = "server.app:app"
CLIENT_APP = "client.app:app"
SERVER_COMMANDS = "server.control.commands:app"
SITE_COMMANDS = "client.site.commands:app"
RUN_READER = "server.store:RunReader"


def load(reference: str) -> Any:
    """Return the object that ``module:attribute`` names.

    Raises:
        ConfigError: If a package it needs is not installed.
    """
    module, _, attribute = reference.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{reference} needs the package '{error.name}', which is not installed. "
            "Install popmi[server] to run rounds, popmi[dashboard] for the pages."
        ) from error
