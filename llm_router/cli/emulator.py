"""``llm-router emulator``: a local server that emulates the Gemini API."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Annotated

import typer

from llm_router.cli.emulated import made_up_secret, make_emulator, with_secrets
from llm_router.cli.faults import FAULT_HELP, inject_faults
from llm_router.cli.output import say
from llm_router.config import load_settings
from llm_router.config.environment import secret_name
from llm_router.domain.deployment import Deployment
from llm_router.errors import ConfigError
from llm_router.testing.clock import ScaledClock

__all__ = ["emulator"]


def emulator(
    *,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="The port; 0 picks a free one.")] = 0,
    host: Annotated[str, typer.Option("--host", help="The address to listen on.")] = "127.0.0.1",
    keys: Annotated[
        Path | None,
        typer.Option(
            "--keys",
            help="A keys file, whose keys are accepted and limits enforced.  [default: any key, no limits]",
        ),
    ] = None,
    speed: Annotated[
        float, typer.Option("--speed", min=0.001, help="Speed of its clock; at 60, a minute takes a second.")
    ] = 1.0,
    fault: Annotated[
        list[str] | None, typer.Option("--fault", metavar="WHAT[:SHARE]", help=FAULT_HELP)
    ] = None,
) -> None:
    """Run an emulator of the Gemini API until Ctrl-C.

    It prints the environment variables that make the router use it. It answers as any model, and lists those
    of its keys file, or some of today's: `llm-router init` works against it, with made-up secrets.
    """
    environment: dict[str, str] = {}
    deployments: tuple[Deployment, ...] | None = None
    if keys is not None:
        found = load_settings(keys, secrets_required=False, store_needed=False).deployments
        bare = [deployment.key.key_id for deployment in found if not deployment.key.secret]
        environment = {secret_name(key_id): made_up_secret(key_id) for key_id in bare}
        deployments = with_secrets(found)
    server = make_emulator(ScaledClock(speed), deployments)
    inject_faults(server, fault or ())

    def started(url: str) -> None:
        say(f"The emulator listens on {url}; press Ctrl-C to end it.")
        for name, value in {"GOOGLE_GEMINI_BASE_URL": url, **environment}.items():
            say(f"export {name}={value}")

    try:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(server.serve(host, port, started=started))
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}, port {port} ({error.strerror or error}): "
            "choose another --host or --port"
        ) from None
