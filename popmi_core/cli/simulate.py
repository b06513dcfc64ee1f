"""`popmi simulate`: a whole federation on one machine, with the real server and client apps."""

from __future__ import annotations

import logging
import shlex
import signal
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal, get_args

import typer

from popmi_core.cli import apps
from popmi_core.cli.lineup import held, plan_run, reopen_run
from popmi_core.cli.progress import shown
from popmi_core.cli.summary import has_finished, print_summary, summarise
from popmi_core.config import RunConfig, Strategy, overlay, parse_config, read_config
from popmi_core.errors import ConfigError, PopmiError, RunError
from popmi_core.protocol import PLAN_KEY, RunPlan

log = logging.getLogger("popmi.run")
Engine = Literal["inprocess", "ray"]
STRATEGIES = ", ".join(get_args(Strategy))


def simulate(
    config: Annotated[Path | None, typer.Argument(help="TOML file describing the run; flags win over it.")] = None,
    strategy: Annotated[str | None, typer.Option(help=f"One of {STRATEGIES}.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Federated rounds.")] = None,
    local_epochs: Annotated[int | None, typer.Option(help="Epochs at every site in every round.")] = None,
    sites: Annotated[
        str | None, typer.Option(help="Names with commas between, or a number: the first so many.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same machine: the same model, bit for bit.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Any timm model by name.")] = None,
    adapter: Annotated[
        str | None, typer.Option("--adapter", "--group", help="PREA: none, C4, D4, or auto: chosen by validation.")
    ] = None,
    lora_rank: Annotated[int | None, typer.Option(help="Low-rank adapters of this rank on the attention.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Pixels per side.")] = None,
    weights: Annotated[str | None, typer.Option(help="random, pretrained or a safetensors file.")] = None,
    data: Annotated[
        str | None, typer.Option(help="auto (POPMI_DATA, data/, else the phantom), phantom or a path.")
    ] = None,
    dp_epsilon: Annotated[float | None, typer.Option(help="DP-SGD at every site: epsilon for the whole study.")] = None,
    dp_delta: Annotated[float | None, typer.Option(help="Delta of that promise, default 1e-5.")] = None,
    engine: Annotated[str, typer.Option(help="inprocess or ray.")] = "inprocess",
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/<time>-<strategy>-seed<seed>.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the run in this folder, as it was described.")] = None,
    json_summary: Annotated[bool, typer.Option("--json", help="Print the summary as JSON only.")] = False,
) -> None:
    """Train one model over several hospitals on this machine."""
    changes = {
        "strategy": strategy,
        "rounds": rounds,
        "seed": seed,
        "sites": None if sites is None else [name.strip() for name in sites.split(",") if name.strip()],
        "data": {"source": data},
        "model": {
            "backbone": backbone,
            "image_size": image_size,
            "weights": weights,
            "adapter": {"group": adapter},
            "lora": {"rank": lora_rank},
        },
        "local": {"epochs": local_epochs},
        "privacy": {"target_epsilon": dp_epsilon, "target_delta": dp_delta},
    }
    given = _without_none(changes)
    if engine not in get_args(Engine):
        raise ConfigError(f"--engine {engine}: expected {' or '.join(get_args(Engine))}.")
    if resume is not None:
        if given or config is not None or out is not None:
            raise ConfigError("--resume goes on with a run as it was described: give no other description beside it.")
        plan = reopen_run(resume)
    else:
        plan = _planned(_describe(config, given), out, engine=engine, quiet=json_summary)
    if plan.resume and has_finished(Path(plan.folder)):
        typer.echo(f"{plan.folder}: this run has finished; there is nothing to go on with.", err=True)
    else:
        run_simulation(plan, engine=engine, quiet=json_summary)
    summary = summarise(Path(plan.folder))
    if json_summary:
        typer.echo(summary.to_json())
    else:
        print_summary(summary)


def _planned(config: RunConfig, out: Path | None, *, engine: str, quiet: bool) -> RunPlan:
    if config.model.adapter.group != "auto":
        return plan_run(config, out)
    from popmi_core.cli.pilots import choose_in_pilots, keep_choice

    decided, choice = choose_in_pilots(
        config,
        out,
        lambda pilot: run_simulation(pilot, engine=engine, quiet=True),
        lambda line: None if quiet else typer.echo(line, err=True),
    )
    if not quiet:
        typer.echo(f"group chosen: {choice.sentence}", err=True)
    plan = plan_run(decided, out)
    keep_choice(choice, Path(plan.folder))
    return plan


def run_simulation(plan: RunPlan, *, engine: str, quiet: bool) -> None:
    """Run ``plan`` on ``engine`` to its end; SIGTERM ends it like Ctrl-C, with a usable run folder.

    Raises:
        PopmiError: If the run fails; the record holds the reason.
        KeyboardInterrupt: If it was stopped.
    """
    server_app, client_app = apps.load(apps.SERVER_APP), apps.load(apps.CLIENT_APP)
    run_config = {PLAN_KEY: plan.model_dump_json()}
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        with held(Path(plan.folder)), shown(Path(plan.folder), quiet=quiet):
            _engage(engine, plan, server_app, client_app, run_config)
    except KeyboardInterrupt:
        # After the progress is off the terminal, where it would be drawn over.
        typer.echo(f"stopped; go on with: popmi simulate --resume {shlex.quote(plan.folder)}", err=True)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _engage(engine: str, plan: RunPlan, server_app: Any, client_app: Any, run_config: dict[str, Any]) -> None:
    # Imported here: the engines need Flower, and `popmi --help` shall not wait for it.
    from popmi_core.simulation import run_inprocess, run_ray

    if plan.phantom:
        log.info("the images of this run are phantoms, drawn by the computer: its figures say nothing about patients")
    try:
        if engine == "ray":
            run_ray(server_app, client_app, num_sites=len(plan.lineup), run_config=run_config, cpus_per_site=1)
        else:
            run_inprocess(server_app, client_app, plan.lineup, run_config)
    except PopmiError:
        raise
    except Exception as error:
        log.exception("the run ended unexpectedly")
        raise RunError(
            f"the run ended unexpectedly ({type(error).__name__}: {error}). The full text is in {plan.folder}/log.txt; "
            f"go on with --resume {shlex.quote(plan.folder)}"
        ) from error


def _describe(config: Path | None, changes: dict[str, Any]) -> RunConfig:
    if config is None:
        return parse_config(overlay({}, changes), source="the command line")
    return read_config(config, changes)


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, value in values.items():
        below = _without_none(value) if isinstance(value, dict) else value
        if below is not None and below != {}:
            kept[key] = below
    return kept


def _interrupt(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise KeyboardInterrupt
