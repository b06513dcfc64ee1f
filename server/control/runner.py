"""Flower's runner, whose server app can be heard.

Flower 1.41 starts the server app with its output sent to nowhere. What it says while it cannot write its record, such
as that the disk is full, would be said nowhere else: here it stands in the runner's log.
"""

from __future__ import annotations

from flwr.supercore.cli import flower_superexec
from flwr.supercore.superexec.plugin import base_exec_plugin

from popmi_core.errors import SetupError


def let_it_speak() -> None:
    """Have the server app's output go where the runner's goes.

    Raises:
        SetupError: If this version of Flower decides that elsewhere.
    """
    plugin = vars(base_exec_plugin).get("AutoExecPlugin")
    if plugin is None or not hasattr(plugin, "suppress_output"):
        raise SetupError("this version of Flower has no suppress_output, expected flwr 1.41. Install popmi[server].")
    plugin.suppress_output = False


def main() -> None:
    """Be the runner; the arguments are ``flower-superexec``'s."""
    let_it_speak()
    flower_superexec()


if __name__ == "__main__":
    main()
