"""``llm-router serve``: a gateway, through which clients in any language use the pool."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import attrs
import typer

from llm_router.cli.emulated import make_emulator, with_secrets
from llm_router.cli.example import example_keys
from llm_router.cli.options import KEYS, Store
from llm_router.cli.output import FAILED, complain, fail, say
from llm_router.cli.routers import choose_store
from llm_router.cli.tokens import TokenFileOption
from llm_router.config import ConfigSource, Settings, load_settings
from llm_router.domain.clock import SystemClock
from llm_router.errors import ConfigError
from llm_router.gateway.tokens import TokenFile, default_token_file
from llm_router.router import Router

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llm_router.gateway import Gateway

__all__ = ["serve"]

_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


@attrs.frozen(kw_only=True)
class _Plan:
    """What each process of the gateway serves; it can be sent to one."""

    keys: Path
    store: str
    base_url: str | None
    max_wait: float
    demo: bool = False
    token_file: Path | None = None
    workers: int = 1
    trusts_proxy: bool = False
    follows_store: bool = True
    watches: bool = False


def serve(
    *,
    host: Annotated[str, typer.Option("--host", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="The port; 0 picks a free one.")
    ] = 8080,
    workers: Annotated[int, typer.Option("--workers", min=1, help="How many processes serve.")] = 1,
    max_wait: Annotated[
        float, typer.Option("--max-wait", min=0, help="Most seconds that a call waits for quota.")
    ] = 60.0,
    demo: Annotated[
        bool, typer.Option("--demo", help="Serve from an emulator, which needs no API key.")
    ] = False,
    keys: Annotated[
        Path | None, typer.Option("--keys", envvar="LLM_ROUTER_KEYS", help="The keys file.")
    ] = None,
    store: Store = None,
    token_file: TokenFileOption = None,
    trust_proxy: Annotated[
        bool,
        typer.Option(
            "--trust-proxy",
            help="Believe X-Forwarded-For, -Host and -Proto: only behind a proxy that sets them.",
        ),
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Follow the keys file and .env when they change.")
    ] = False,
) -> None:
    """Serve the paths of Gemini and of OpenAI until Ctrl-C; every call goes through the pool of keys.

    Clients need its URL as their base URL, and as their key a token of `llm-router tokens add`; without
    tokens, any word. Where it does not run on a terminal, SIGHUP has it read the keys file and .env again.

    While the store fails, every call is refused. /metrics needs the extra prometheus; with several workers,
    each scrape is of the one that its label names.
    """
    if token_file is None and os.path.exists(default_token_file()):  # noqa: PTH110 - never raises
        token_file = default_token_file()
    has_tokens = token_file is not None and bool(TokenFile(token_file).read().grants)
    if token_file is not None and not has_tokens:
        raise ConfigError(
            f"{str(token_file)!r} has no token: add one with `llm-router tokens add NAME`, "
            "or remove the file, which lets every program of this machine in"
        )
    if not has_tokens and host not in _LOOPBACK:
        raise ConfigError(
            f"anybody who reaches {host} could use the keys: add a token with `llm-router tokens add NAME`, "
            "or listen on 127.0.0.1"
        )
    if demo and watch:
        raise ConfigError("--watch: with --demo there are no keys to follow: leave one of the two out")
    if not max_wait < float("inf"):
        raise ConfigError("--max-wait must be a number of seconds")
    with contextlib.ExitStack() as stack:
        plan = stack.enter_context(_demo(keys, store, max_wait)) if demo else None
        plan = plan or _plan(keys or KEYS, store, max_wait)
        plan = attrs.evolve(
            plan, token_file=token_file, workers=workers, trusts_proxy=trust_proxy, watches=watch
        )
        _serve(plan, host, port)


def _serve(plan: _Plan, host: str, port: int) -> None:
    try:
        from llm_router.gateway.server import listen, run  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        needed = "pip install 'llm-quota-router[gateway]'"
        raise ConfigError(f"the gateway needs {error.name}: {needed}") from error
    if plan.workers > 1 and plan.store.startswith("memory:"):
        raise ConfigError(
            "--workers: each process would count its own quota in memory://: name a store that they share, "
            "such as --store sqlite:////path/of/state.sqlite3"
        )
    try:
        listener = listen(host, port)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}, port {port} ({error.strerror or error}): "
            "choose another --host or --port"
        ) from None
    with listener:
        shown = f"[{host}]" if ":" in host else host
        if plan.token_file is None:
            complain("The gateway has no tokens: every program of this machine may use it.")
        url = f"http://{shown}:{listener.getsockname()[1]}"
        say(f"The gateway listens on {url}; press Ctrl-C to end it.")
        say(f"Its page is {url}/{_who_may_see(plan)}")
        if run(partial(_gateway, plan), listener, plan.workers):
            fail("a process of the gateway could not start", FAILED)


def _who_may_see(plan: _Plan) -> str:
    if plan.token_file is None:
        return ""
    if any(grant.admin for grant in TokenFile(plan.token_file).read().grants):
        return "; sign in with an admin token."
    return "; for a token that opens it: llm-router tokens add NAME --admin"


def _plan(keys: Path, store: str | None, max_wait: float) -> _Plan:
    settings = load_settings(keys)
    url = choose_store(settings, store)
    return _Plan(
        keys=keys,
        store=url,
        base_url=settings.base_url,
        max_wait=max_wait,
        follows_store=store is None,
    )


@contextlib.contextmanager
def _demo(keys: Path | None, store: str | None, max_wait: float) -> Iterator[_Plan]:
    """Run an emulator that has the quotas of a keys file; yield how to serve from it."""
    path = keys or example_keys()
    emulator = make_emulator(SystemClock(), _demo_settings(path).deployments)
    with emulator.run_in_thread():
        url = store or "memory://"
        yield _Plan(keys=path, store=url, base_url=emulator.url, max_wait=max_wait, demo=True)


def _demo_settings(path: Path) -> Settings:
    # Neither the settings of the environment nor real keys have a part in it.
    settings = load_settings(path, env={}, env_file=None, secrets_required=False)
    return attrs.evolve(settings, deployments=with_secrets(settings.deployments))


def _gateway(plan: _Plan) -> Gateway:
    """Make what a process serves."""
    from llm_router.gateway import Gateway  # noqa: PLC0415 - only for this
    from llm_router.gateway.activity import Activity  # noqa: PLC0415
    from llm_router.gateway.callers import Callers  # noqa: PLC0415
    from llm_router.gateway.hangups import means_reload  # noqa: PLC0415
    from llm_router.gateway.metrics import Metrics  # noqa: PLC0415

    source = None if plan.demo else ConfigSource(plan.keys, store_needed=plan.follows_store)
    settings = _demo_settings(plan.keys) if source is None else source.load()
    worker = multiprocessing.current_process().name if plan.workers > 1 else None
    metrics, activity = Metrics(worker), Activity(worker)
    file = plan.token_file
    router = Router.from_settings(
        settings,
        source=source,
        watch=plan.watches,
        store=plan.store,
        base_url=plan.base_url,
        on_store_failure="closed",
        observers=(*metrics.observers, activity),
    )
    callers = None
    if file is not None:
        callers = Callers(TokenFile(file), workers=plan.workers, records=router.records)
    return Gateway(
        router,
        callers=callers,
        max_wait=plan.max_wait,
        trusts_proxy=plan.trusts_proxy,
        metrics=metrics,
        activity=activity,
        heeds_hangups=means_reload() and not plan.demo,
    )
