"""The commands that keep a store: refresh, accept, rollback, release, history."""

from __future__ import annotations

import secrets
from typing import Any

import click

from batchnorm_tool.cli_command import EPILOG, Command, seconds_of
from batchnorm_tool.cli_flags import common_flags, waiting_flags


@click.command("refresh", epilog=EPILOG)
@click.argument("job_file", metavar="JOB.yaml")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Set a key.")
@click.option("--dry-run", is_flag=True, help="Say what would change and stop.")
@click.option("--print-config", is_flag=True, help="Print the resolved job and stop.")
@waiting_flags
@common_flags
def refresh_command(job_file: str, **options: Any) -> None:
    """Bring a store of vectors up to date with tonight's input.

    Only new and changed rows meet the model. A night that breaks a limit of the gate publishes
    nothing and waits (exit 3) for `accept`; readers of the store see last night or tonight, never
    half of it.
    """
    run_id = secrets.token_hex(8)
    with Command(options, run_id=run_id) as terminal:
        from batchnorm_tool.job import Job

        job = Job.load(job_file, options["overrides"])
        if options["print_config"]:
            terminal.config(job)
        elif options["dry_run"]:
            from batchnorm_tool.jobs.refreshing import plan_refresh

            terminal.planned_night(plan_refresh(job))
        else:
            from batchnorm_tool.jobs.refreshing import refresh

            night = refresh(
                job,
                wait_seconds=seconds_of(options["wait"]),
                metrics_file=options["metrics_file"],
                progress=terminal.progress(options["progress"]),
                announce=terminal.announce,
                run_id=run_id,
            )
            terminal.night(night.to_dict())


@click.command("accept", epilog=EPILOG)
@click.argument("store", metavar="STORE")
@click.argument("version", metavar="VERSION", type=int)
@waiting_flags
@common_flags
def accept_command(store: str, version: int, **options: Any) -> None:
    """Publish the candidate that waits, without computing it again.

    VERSION is its number: one that a later night has superseded is not published.
    """
    with Command(options, run_id=secrets.token_hex(8)) as terminal:
        from batchnorm_tool.jobs.deciding import accept

        night = accept(
            store,
            version,
            wait_seconds=seconds_of(options["wait"]),
            metrics_file=options["metrics_file"],
            progress=terminal.progress(options["progress"]),
        )
        terminal.night(night.to_dict())


@click.command("rollback", epilog=EPILOG)
@click.argument("store", metavar="STORE")
@click.option("--to", type=int, metavar="VERSION", help="Default: the one before the live one.")
@waiting_flags
@common_flags
def rollback_command(store: str, to: int | None, **options: Any) -> None:
    """Make an older version the live one, and put the store on hold.

    Every publish target is brought back as well. Until `release` or `accept`, nights are staged
    and judged, and not published.
    """
    with Command(options, run_id=secrets.token_hex(8)) as terminal:
        from batchnorm_tool.jobs.deciding import rollback

        night = rollback(
            store,
            to,
            wait_seconds=seconds_of(options["wait"]),
            metrics_file=options["metrics_file"],
        )
        terminal.night(night.to_dict())


@click.command("release", epilog=EPILOG)
@click.argument("store", metavar="STORE")
@click.option("--wait", metavar="TIME", help="Wait for another run: 30s, 10m, 2h.")
@common_flags
def release_command(store: str, **options: Any) -> None:
    """End the hold that a rollback began: the next refresh publishes again."""
    with Command(options, run_id=secrets.token_hex(8)) as terminal:
        from batchnorm_tool.jobs.deciding import release

        terminal.released(release(store, wait_seconds=seconds_of(options["wait"])))


@click.command("history", epilog=EPILOG)
@click.argument("store", metavar="STORE")
@click.option("--html", metavar="FILE", help="Draw the nights over time on a page.")
@common_flags
def history_command(store: str, html: str | None, **options: Any) -> None:
    """List the nights of a store: versions, rows, norms, and what the gate said."""
    with Command(options, keeps=False) as terminal:
        from batchnorm_tool.jobs.looking_back import history

        terminal.looked_back(history(store, html=html), html)


STORE_COMMANDS = (
    refresh_command,
    accept_command,
    rollback_command,
    release_command,
    history_command,
)
