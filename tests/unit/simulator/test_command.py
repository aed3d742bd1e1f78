"""Options of the ``simulate`` command; that it serves is tested with real sockets."""

from __future__ import annotations

import subprocess
import sys

import pytest
from click.testing import CliRunner

from router.simulator.command import simulate


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--fault", "status=9"], "expected at least 200"),
        (["--fault", "nope"], "expected one of"),
        (["--pace", "0"], "expected realtime, fast or a positive number"),
        (["--pace", "nan"], "expected realtime, fast or a positive number"),
        (["--pace", "soon"], "expected realtime, fast or a positive number"),
        (["--dialect", "klingon"], "klingon"),
        (["--port", "70000"], "70000"),
        (["--session-cap", "0"], "0"),
    ],
)
def test_wrong_options_are_told(options: list[str], words: str) -> None:
    """A wrong option is a usage error that says what was expected."""
    result = CliRunner().invoke(simulate, options)
    assert result.exit_code == 2
    assert words in result.output


def test_help_needs_no_web_server() -> None:
    """Loading the command costs none of the modules that serve, so the command line stays quick."""
    look = "print([name for name in ('aiohttp', 'asyncio') if name in sys.modules])"
    code = f"import sys; from router.simulator.command import simulate; {look}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
