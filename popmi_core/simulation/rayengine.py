"""The same apps on Flower's own simulation engine, Ray: one process per worker."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.supercore.telemetry import EventType

from popmi_core.errors import ConfigError

RUN_ID = 1


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
    # Imported late: Flower's engine module takes seconds and starts telemetry unless told not to.
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from flwr.simulation.run_simulation import _run_simulation

    logging.getLogger("flwr").setLevel(logging.ERROR)
    context = Context(run_id=RUN_ID, node_id=0, node_config={}, state=RecordDict(), run_config=dict(run_config))
    _run_simulation(
        num_supernodes=num_sites,
        exit_event=EventType.PYTHON_API_RUN_SIMULATION_LEAVE,
        client_app=client_app,
        server_app=server_app,
        server_app_context=context,
        backend_config={
            "client_resources": {"num_cpus": cpus_per_site, "num_gpus": 0.0},
            "init_args": {"include_dashboard": False, "log_to_driver": False},
        },
    )
