"""The same apps on Flower's own simulation engine, Ray: one process per worker."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from popmi_core.errors import ConfigError


def run_ray(
    server_app: ServerApp, client_app: ClientApp, *, num_sites: int, run_config: Mapping[str, Any], cpus_per_site: int
) -> None:
    """Run a whole federated run on Ray; nodes are numbered, so the server sends the lineup along.

    Raises:
        ConfigError: If Ray is not installed.
        Whatever the server app raises.
    """
    try:
        import ray  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "--engine ray needs the package ray. Install popmi[ray] or use --engine inprocess."
        ) from error
    # Before Flower's engine starts: neither it nor Ray shall call home.
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from flwr.simulation import run_simulation

    logging.getLogger("flwr").setLevel(logging.ERROR)
    configured = ServerApp()

    @configured.main()
    def main(grid: Grid, context: Context) -> None:
        # The engine hands over an empty run configuration; the deployed one does not.
        context.run_config.update(run_config)
        server_app(grid, context)

    run_simulation(
        server_app=configured,
        client_app=client_app,
        num_supernodes=num_sites,
        backend_config={
            "client_resources": {"num_cpus": cpus_per_site, "num_gpus": 0.0},
            "init_args": {"include_dashboard": False, "log_to_driver": False},
        },
    )
