"""The commands. Each imports what it needs when it runs: ``--version`` must not wait for aiohttp.

    realtime-router --config FILE [--host H] [--port P]     serve
    realtime-router check FILE                              say everything that is wrong with a file
    realtime-router schema                                  its JSON Schema, for editors
    realtime-router key new                                 a random key and the hash that goes into the file
    realtime-router simulate …                              a provider to test against
    realtime-router demo                                    a router in front of three simulated deployments
    realtime-router talk --model NAME TEXT                  one turn with a running router, in the terminal
    realtime-router ctl …                                   see and change a running router
    realtime-router top                                     see it live

Standard output carries results (the URL, a schema, a key), standard error carries logs and complaints.
Exit codes: 0 done, 1 cannot (the address is taken), 2 wrong usage or configuration.
"""

from __future__ import annotations

import gc
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

import click

from router._version import __version__
from router.ctl.commands import ctl, top
from router.simulator.command import simulate

if TYPE_CHECKING:
    from router.config import Loaded


def fail(message: str, *, code: int) -> NoReturn:
    """Complain and end."""
    click.echo(message, err=True)
    sys.exit(code)


def load_or_fail(path: str, *, host: str | None = None, port: int | None = None) -> Loaded:
    """Load a configuration, or say all that is wrong with it and exit with 2."""
    from router.config import load
    from router.config.source import printable
    from router.errors import ConfigError

    try:
        return load(path, host=host, port=port)
    except ConfigError as error:
        for warning in error.warnings:
            click.echo(f"warning: {warning}", err=True)
        problems = len(error.problems)
        fail(f"{error}\n{problems} problem{'s' if problems != 1 else ''} in {printable(path, 200)}", code=2)


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="realtime-router")
@click.option("--config", metavar="FILE", help="The YAML configuration.")
@click.option("--host", help="Address to listen on; wins over general_settings.listen.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on; 0 takes a free one. Default 4000.")
@click.pass_context
def main(context: click.Context, config: str | None, host: str | None, port: int | None) -> None:
    """Route realtime voice sessions to whatever deployment of their model works."""
    if context.invoked_subcommand is not None:
        if config is not None or host is not None or port is not None:
            raise click.UsageError(f"--config, --host and --port belong to serving, not to {context.invoked_subcommand!r}.")
        return
    if config is None:
        raise click.UsageError("--config FILE is missing. `realtime-router demo` runs without one.")
    if hasattr(signal, "SIGHUP"):
        # Never fatal, not while the modules are loaded either.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # Modules and settings are made to stay; looking for garbage among them is a tenth of the start. ``serve`` enables it again.
    gc.disable()
    from router.reload import Origin, Source
    from router.serve import serve

    source = Source.of(config, host=host, port=port)
    sys.exit(serve(Origin(source=source, loaded=load_or_fail(config, host=host, port=port))))


@main.command()
@click.argument("file")
@click.option("--strict", is_flag=True, help="Exit with 2 on warnings as well.")
def check(file: str, strict: bool) -> None:
    """Say everything that is wrong with a configuration FILE; exit 0 when nothing is, 2 otherwise."""
    loaded = load_or_fail(file)
    for warning in loaded.warnings:
        click.echo(f"warning: {warning}", err=True)
    if strict and loaded.warnings:
        fail(f"{len(loaded.warnings)} warning{'s' * (len(loaded.warnings) != 1)}, and none allowed by --strict", code=2)
    groups = loaded.settings.groups
    deployments = sum(len(group.deployments) for group in groups.values())
    click.echo(f"{file}: ok: {len(groups)} group{'s' * (len(groups) != 1)}, {deployments} deployment{'s' * (deployments != 1)}")


@main.command()
def schema() -> None:
    """Print the JSON Schema of the configuration, for editors."""
    import json

    from router.config import json_schema

    click.echo(json.dumps(json_schema(), indent=2))


@main.group()
def key() -> None:
    """Keys for clients."""


@key.command("new")
@click.option("--name", default="my-app", show_default=True, help="Name of the key in logs and metrics.")
def key_new(name: str) -> None:
    """Print a random key and the entry that admits it."""
    import json

    from router.auth import new_key

    plain, hashed = new_key()
    click.echo(f"key (give it to the client; it is stored nowhere): {plain}\n")
    # Written as JSON, which is YAML: "true" and "a: b" are names as well.
    click.echo(f"general_settings:\n  keys:\n    - name: {json.dumps(name)}\n      sha256: {hashed}")


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=4000, show_default=True, help="Port; 0 takes a free one.")
def demo(host: str, port: int) -> None:
    """Serve a router in front of three simulated deployments, one of which fails now and then. No key is needed."""
    from router.demo import run_demo

    sys.exit(run_demo(host=host, port=port))


@main.command()
@click.argument("text", default="Hello, who are you?")
@click.option("--url", default="ws://127.0.0.1:4000/v1/realtime", show_default=True, help="The router.")
@click.option("--model", required=True, help="A group's name.")
@click.option("--key", envvar="REALTIME_ROUTER_KEY", help="The router's key; also from REALTIME_ROUTER_KEY.")
@click.option("--ca-file", metavar="FILE", help="PEM file of the authority that signed the router's certificate.")
@click.option("--timeout", default=60.0, show_default=True, help="Seconds for the whole turn.")
def talk(text: str, url: str, model: str, key: str | None, ca_file: str | None, timeout: float) -> None:
    """Hold one turn with a model by TEXT and print what comes, and when."""
    import asyncio

    from router.talk import talk as hold

    sys.exit(asyncio.run(hold(url, model=model, key=key, text=text, timeout_s=timeout, ca_file=ca_file)))


main.add_command(simulate)
main.add_command(ctl)
main.add_command(top)

