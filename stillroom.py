"""The command line: wires proxy, router and distiller together. Start reading here.

Every command is a function of parsed arguments; heavy imports wait inside the command that needs them, so that a
worker never loads torch and `--help` is instant. Errors meant for people are printed as one line, exit code 1.
"""

import argparse
import json
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, Any

from distiller.command_line import Command, build_parser
from distiller.command_tools import opened_log, sentence, show
from distiller.evidence_commands import certificate, freeze, gold, promote, rivals, rollback, status, verify
from distiller.export_commands import edge, export
from distiller.forecast_commands import forecast
from distiller.settings import Settings, load_settings
from proxy.errors import BadInput, StillroomError

if TYPE_CHECKING:
    from proxy.admitting import Admit
    from proxy.keys import KeyRing


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = build_parser(COMMANDS).parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    command: Command = arguments.command
    try:
        return command(arguments)
    except StillroomError as error:
        print(f"stillroom: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 0


def serve(arguments: argparse.Namespace) -> int:
    """Start workers and controller, and keep them running."""
    import asyncio
    from functools import partial

    from prometheus_client.multiprocess import mark_process_dead

    from proxy.admin import admin_token
    from proxy.choosing import check_choosing
    from proxy.listening import bound, descriptor
    from proxy.logs import set_up
    from proxy.metrics_folder import metrics_folder
    from proxy.names import require_names
    from proxy.supervisor import Child, supervise
    from proxy.teachers import connect_teachers
    from router.judge_client import connect_judge

    settings = load_settings(arguments.config)
    set_up(settings.logging.format, settings.logging.level, "serve")
    check_choosing(settings.teacher)
    connect_teachers(settings.teacher)  # Refuse to start, rather than fail each request, when a key is missing.
    connect_judge(settings.judge, lambda *_: None)
    admin_token(settings.admin)
    if settings.redaction.names:
        require_names()
    fd = descriptor(bound(settings.proxy.host, settings.proxy.port))
    admin_fd = descriptor(bound(settings.admin.host, settings.admin.port))
    with metrics_folder(settings.metrics) as metrics:
        program = [sys.executable, "-m", "stillroom"]
        config = ["--config", str(arguments.config)] if arguments.config else []
        environment = {"PROMETHEUS_MULTIPROC_DIR": str(metrics)}
        asking = [*program, "worker", "--fd", str(fd), *config, "--number"]
        children = [
            Child(f"worker {number}", [*asking, str(number)], environment, [fd])
            for number in range(1, settings.proxy.workers + 1)
        ]
        children.append(Child("controller", [*program, "controller", "--fd", str(admin_fd), *config], {}, [admin_fd]))
        print(
            f"Stillroom listens on http://{settings.proxy.host}:{settings.proxy.port}/v1 and asks "
            f"{settings.teacher.url}; everything it keeps is under {settings.folder} "
            f"(process {os.getpid()}; Ctrl-C stops it)",
            flush=True,
        )
        buried = partial(mark_process_dead, path=str(metrics))

        async def supervised(stop: asyncio.Event) -> None:
            supervising = asyncio.create_task(supervise(children, stop, buried=buried))
            await stop.wait()
            for listening in (fd, admin_fd):  # While ours are open, the kernel takes connections nobody will serve.
                os.close(listening)
            await supervising

        asyncio.run(_until_signal(supervised))
        return 0


def worker(arguments: argparse.Namespace) -> int:
    """One proxy process on an inherited socket; started by `serve`."""
    import contextlib
    import socket

    import uvicorn

    from proxy.app import create_app
    from proxy.keys import load_key_ring
    from proxy.logs import set_up
    from proxy.supervisor import end_with_parent
    from proxy.watched import Watched
    from proxy.wire import Wire
    from router.decide import Router
    from router.policy import PolicyWatcher

    end_with_parent()
    settings = load_settings(arguments.config)
    set_up(settings.logging.format, settings.logging.level, f"worker {arguments.number}")
    router = Router(PolicyWatcher(settings.policy))
    ring = Watched(settings.keys, load_key_ring)

    @contextlib.asynccontextmanager
    async def running() -> AsyncIterator[None]:
        async with router.running(), ring.watching():
            yield

    app = create_app(
        settings.proxy, settings.teacher, settings.spool, settings.spool_folder, router.decide, running,
        settings.redaction, _admission(settings, lambda: ring.value),
    )  # fmt: skip
    config = uvicorn.Config(
        app, loop="uvloop", http=Wire, ws="none", log_level="warning", log_config=None, access_log=False,
        server_header=False, date_header=False, proxy_headers=False,
        timeout_keep_alive=75, timeout_graceful_shutdown=25,
    )  # fmt: skip
    server = uvicorn.Server(config)
    app.draining = lambda: server.should_exit
    server.run(sockets=[socket.socket(fileno=arguments.fd)])
    return 0


def _admission(settings: Settings, ring: Callable[[], "KeyRing"]) -> "Admit":
    """Who may ask: holders of our keys within their limits, or everybody who brings a key for the teacher."""
    from functools import partial

    from proxy.accounts import Accounts
    from proxy.choosing import choosing
    from proxy.costs import Sizes
    from proxy.gateway import Gateway, Tariff
    from proxy.tenants import passing_through, tenant_salt
    from router.prices import cost, model_sizes, price_map

    if not settings.proxy.keys:
        return passing_through(tenant_salt(settings.tenant_salt))
    sizes = model_sizes(Sizes(settings.proxy.context_tokens, settings.proxy.answer_tokens))
    price = partial(cost, price_map(settings.money.prices))
    return Gateway(ring, Accounts(settings.limits), Tariff(price, sizes, choosing(settings.teacher)))


def controller(arguments: argparse.Namespace) -> int:
    """Everything that is not the request path; started by `serve`."""
    import asyncio
    import socket

    from distiller.service import run_controller
    from proxy.logs import set_up
    from proxy.supervisor import end_with_parent

    end_with_parent()
    settings = load_settings(arguments.config)
    set_up(settings.logging.format, settings.logging.level, "controller")
    listener = socket.socket(fileno=arguments.fd)
    asyncio.run(_until_signal(lambda stop: run_controller(settings, arguments.config, listener, stop)))
    return 0


def keys(arguments: argparse.Namespace) -> int:
    """Make, list or revoke virtual keys."""
    import time
    from dataclasses import asdict

    from distiller.terminal import keys_table
    from proxy.accounts import read_standing
    from proxy.keys import create_key, read_keys, revoke_key
    from proxy.limits import Limits

    settings, name = load_settings(arguments.config), arguments.name
    if arguments.action == "list":
        found = [(key, read_standing(settings.limits, key.name, time.time())) for key in read_keys(settings.keys)]
        flat = [{**asdict(key), **asdict(standing)} for key, standing in found]
        return show(arguments, flat if arguments.json else found, keys_table)
    if not name:
        raise BadInput(f"say whose key: stillroom keys {arguments.action} NAME")
    if arguments.action == "revoke":
        revoked = revoke_key(settings.keys, name)
        return show(arguments, {"name": name, "revoked": str(revoked.revoked)}, sentence("{name} is revoked"))
    limits = Limits(arguments.requests_per_minute, arguments.tokens_per_minute, arguments.budget)
    secret = create_key(settings.keys, name, tuple(arguments.model), limits, not arguments.no_capture)
    if not settings.proxy.keys:
        print("stillroom: keys are not asked for yet: set proxy.keys = true and start again", file=sys.stderr)
    return show(arguments, {"name": name, "key": secret}, sentence("{key}"))


def erase(arguments: argparse.Namespace) -> int:
    """Erase an end user's exchanges, and name the students that learned from them."""
    from distiller.erase import erase as run
    from distiller.terminal import erased_summary

    settings = load_settings(arguments.config)
    opened_log(settings).close()  # Says so where there is none.
    if not arguments.user:
        raise BadInput("say whose exchanges: stillroom erase --user ID")
    if not arguments.yes:
        question = f"Erase everything of {arguments.user!r} for good? Type yes: "
        if not sys.stdin.isatty() or input(question) != "yes":
            raise BadInput("nothing was erased: confirm with --yes")
    return show(arguments, run(settings, arguments.user), erased_summary)


def replay_teacher(arguments: argparse.Namespace) -> int:
    """Answer recorded prompts as the recorded teacher did."""
    import uvicorn

    from proxy.listening import bound
    from proxy.replay import create_replay
    from proxy.traffic_file import read_traffic

    rows = [row for file in arguments.traffic for row in read_traffic(file)]
    app = create_replay(rows, latency=arguments.latency, chunk_delay=arguments.chunk_delay, model=arguments.model)
    listener = bound(arguments.host, arguments.port)
    print(f"replaying {len(rows)} recorded answers on http://{arguments.host}:{arguments.port}/v1", flush=True)
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_keep_alive=75)
    uvicorn.Server(config).run(sockets=[listener])
    return 0


def tasks(arguments: argparse.Namespace) -> int:
    """List the recurring tasks."""
    from distiller.terminal import tasks_table
    from router.ledger import report

    found = report(opened_log(load_settings(arguments.config)))
    return show(arguments, found.tasks, tasks_table)


def distill(arguments: argparse.Namespace) -> int:
    """Distill a student for one task."""
    _wait_politely()
    from distiller.distill import Distilled
    from distiller.distill import distill as run
    from distiller.languages_table import languages_table
    from distiller.terminal import distilled_summary, progress

    def summary(done: Distilled) -> None:
        distilled_summary(done)
        languages_table(done.languages)

    settings = load_settings(arguments.config)
    with progress(quiet=arguments.json) as on_progress:
        done = run(opened_log(settings), settings, arguments.task, on_progress)
    return show(arguments, done, summary)


def explain(arguments: argparse.Namespace) -> int:
    """Ask the teacher why it answered as it did, for students to learn from."""
    import asyncio

    from distiller.explaining import explain as run
    from distiller.rationales import Wish
    from distiller.terminal import explaining_summary, progress

    settings = load_settings(arguments.config)
    wish = Wish(arguments.budget, arguments.share, arguments.most)
    log = opened_log(settings)
    with progress(quiet=arguments.json) as on_progress:
        done = asyncio.run(_until_signal(lambda stop: run(log, settings, arguments.task, wish, stop, on_progress)))
    show(arguments, done, explaining_summary)
    return 1 if done.asked.problems else 0


def lineage(arguments: argparse.Namespace) -> int:
    """Trace a student back to the exchanges it learned from, and make it again from them."""
    _wait_politely()
    from distiller.lineage import lineage as trace
    from distiller.lineage import rebuild, student_of
    from distiller.terminal import lineage_summary, progress, rebuilt_summary

    settings = load_settings(arguments.config)
    bundle, log = student_of(settings, arguments.student), opened_log(settings)
    if not arguments.rebuild:
        return show(arguments, trace(log, bundle), lineage_summary)
    with progress(quiet=arguments.json) as on_progress:
        done = rebuild(log, settings, bundle, on_progress)
    show(arguments, done, rebuilt_summary)
    return 0 if done.same else 1


def report(arguments: argparse.Namespace) -> int:
    """Show what was spent, avoided and saved."""
    from distiller.terminal import report_table
    from router.ledger import report as run

    return show(arguments, run(opened_log(load_settings(arguments.config))), report_table)


def sql(arguments: argparse.Namespace) -> int:
    """Query the log."""
    from distiller.terminal import rows_table

    columns, rows = opened_log(load_settings(arguments.config), read_only=True).table(arguments.query)
    if arguments.json:
        print(json.dumps([dict(zip(columns, row, strict=True)) for row in rows], default=str))
    else:
        rows_table(columns, rows)
    return 0


def doctor(arguments: argparse.Namespace) -> int:
    """Check a set-up and say what to fix."""
    from distiller.doctor import examine
    from distiller.terminal import findings_table

    found = examine(arguments.config)
    show(arguments, found, findings_table)
    return 0 if all(finding.ok for finding in found) else 1


def demo(arguments: argparse.Namespace) -> int:
    """Run the whole loop on recorded or generated traffic."""
    _wait_politely()
    from distiller.demo import run_demo

    return run_demo(arguments.traffic, arguments.folder)


def _wait_politely() -> None:
    """Before torch is loaded: waiting threads must not spin, or two busy processes on few cores stall each other."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TQDM_DISABLE", "1")  # Libraries' own bars would break into ours.


async def _until_signal(work: Callable[[Any], Any]) -> Any:
    import asyncio

    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return await work(stop)


COMMANDS: Mapping[str, Command] = {
    command.__name__.replace("_", "-"): command
    for command in (
        serve, worker, controller, demo, tasks, forecast, explain, distill, lineage, certificate, verify, promote,
        rollback, freeze, rivals, gold, export, edge, keys, erase, status, report, sql, replay_teacher, doctor,
    )
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
