"""``realtime-router simulate``: one simulated provider in the foreground."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import click

if TYPE_CHECKING:
    from router.simulator.dialects import DialectName
    from router.simulator.faults import Fault


class _Pace(click.ParamType[Literal["realtime", "fast"] | float]):
    """``realtime``, ``fast``, or a factor."""

    name = "pace"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Literal["realtime", "fast"] | float:
        """Read the option."""
        if value == "realtime" or value == "fast":
            return "realtime" if value == "realtime" else "fast"
        try:
            factor = float(str(value))
        except ValueError:
            factor = 0.0
        if not factor > 0:
            self.fail(f"found {value!r}, expected realtime, fast or a positive number", param, ctx)
        return factor


class _FaultParam(click.ParamType["Fault"]):
    """A fault in its written form."""

    name = "fault"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Fault:
        """Read the option."""
        from router.simulator.faults import FaultError, parse_fault

        try:
            return parse_fault(str(value))
        except FaultError as error:
            self.fail(str(error), param, ctx)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=4010, show_default=True, help="0 takes a free one.")
@click.option(
    "--dialect",
    type=click.Choice(["openai", "openai-beta", "azure", "xai", "echo"]),
    default="openai",
    show_default=True,
    help="What it speaks.",
)
@click.option("--api-key", "api_keys", multiple=True, help="A key to accept; repeatable. Without any, none is needed.")
@click.option(
    "--bad-key",
    type=click.Choice(["event", "http"]),
    default="event",
    show_default=True,
    help="How another key is refused: by an error event after the 101, or by HTTP 401.",
)
@click.option("--pace", type=_Pace(), default="realtime", show_default=True, help="realtime, fast, or a factor such as 5.")
@click.option("--seed", type=int, help="Makes ids and the chances of faults repeatable.")
@click.option("--model", "models", multiple=True, help="A model to serve; repeatable. Without any, all names are served.")
@click.option(
    "--session-cap", type=click.FloatRange(0, min_open=True), help="Longest session in seconds; default: the dialect's."
)
@click.option("--max-sessions", type=click.IntRange(1), help="Sessions at a time; more get HTTP 429.")
@click.option("--name", default="", help="Sent as x-simulator and said in answers.")
@click.option("--reply", help="What it says, whatever it is asked.")
@click.option("--heard", help="What the user's speech is taken to say.")
@click.option(
    "--fault",
    "faults",
    type=_FaultParam(),
    multiple=True,
    help="verb[=value][,option=value]…, such as status=503,retry_after=7,next=3; repeatable.",
)
def simulate(
    *,
    host: str,
    port: int,
    dialect: DialectName,
    api_keys: tuple[str, ...],
    bad_key: Literal["event", "http"],
    pace: Literal["realtime", "fast"] | float,
    seed: int | None,
    models: tuple[str, ...],
    session_cap: float | None,
    max_sessions: int | None,
    name: str,
    reply: str | None,
    heard: str | None,
    faults: tuple[Fault, ...],
) -> None:
    """Run a simulated provider until Ctrl-C or SIGTERM.

    Its faults can be changed while it runs: POST /_sim/faults with {"verb": "status", "status": 503, "next": 3}, GET and DELETE
    /_sim/faults; GET /_sim/stats tells what it saw.

    \b
    Faults (verb=VALUE,option=…; each takes next=N, every=K, probability=P as well):
      refuse                      no connection, or a reset (reset=true)
      status=503,retry_after=7    another HTTP status than 101
      hang_before_101             a connection and no answer
      hang_after_101              a 101 and silence
      slow_first_event=2.5        the first event late, in seconds
      error_event=CODE,close=N    a 101, an error event, a close
      close_after_events=N        so many events, then a close
      reset_after_events=N        so many events, then a reset
      garbage=frame|json|http     illegal bytes
      stall, drop_mid_turn        silence, or the connection's end, in mid-answer
      fail_turn=CODE              each answer ends as failed
    """
    import asyncio
    import contextlib
    import signal

    from router.simulator.server import Simulator

    sim = Simulator(
        dialect=dialect,
        host=host,
        port=port,
        api_keys=api_keys or None,
        bad_key=bad_key,
        pace=pace,
        seed=seed,
        models=models or None,
        session_cap_s=session_cap,
        max_sessions=max_sessions,
        name=name,
        reply=reply,
        heard=heard,
        faults=faults,
    )

    async def run() -> None:
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, ended.set)
        async with sim:
            click.echo(f"simulating {dialect} on {sim.api_base}")
            await ended.wait()

    make_loop = None
    with contextlib.suppress(ImportError):  # not on every platform
        import uvloop

        make_loop = uvloop.new_event_loop
    try:
        with asyncio.Runner(loop_factory=make_loop) as runner:
            runner.run(run())
    except OSError as error:
        raise click.ClickException(f"--host {host} --port {port}: cannot listen: {error.strerror or error}") from None
