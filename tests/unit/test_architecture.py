"""The rules of who may import whom and of what is banned hold, and the tools that check them notice when they do not.

Each rule is broken on purpose in a copy of the source: a rule that nothing can break checks nothing.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("router", "strategies")

# Decides without waiting: what of these exists must be under the contract of the pure core.
PURE_CORE = (
    "router.accounting",
    "router.admin.bodies",
    "router.admin.contract",
    "router.admin.documents",
    "router.admin.merge",
    "router.admin.openapi",
    "router.admin.overrides",
    "router.auth",
    "router.breaker",
    "router.config",
    "router.dashboard.login",
    "router.decisions",
    "router.drain",
    "router.errors",
    "router.events",
    "router.fleet.board",
    "router.fleet.exchange",
    "router.fleet.picture",
    "router.generations",
    "router.handshake",
    "router.limits",
    "router.listener.certificate",
    "router.listener.proxyprotocol",
    "router.load",
    "router.pool",
    "router.providers",
    "router.proxies",
    "router.redaction",
    "router.relay.contract",
    "router.relay.fastpath",
    "router.relay.frames",
    "router.relay.rewrite",
    "router.retry",
    "router.tracecontext",
    "router.usage",
)

STRATEGIES_RULE = "the router imports strategies, never the other way round"
STRATEGIES_IO_RULE = "strategies do no I/O"
TRACING_RULE = "only the tracer knows OpenTelemetry"
PURE_RULE = "the pure core knows neither the event loop nor the network"


def _contracts() -> dict[str, dict[str, list[str]]]:
    document = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return {contract["name"]: contract for contract in document["tool"]["importlinter"]["contracts"]}


def _exists(module: str) -> bool:
    path = ROOT.joinpath(*module.split("."))
    return path.with_suffix(".py").is_file() or any(path.glob("*.py"))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of what the import rules are about, to be spoilt."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def _lint_imports(directory: Path) -> subprocess.CompletedProcess[str]:
    """Check the import rules in ``directory``; the packages there come before any that are installed."""
    return subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache"],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(directory), "NO_COLOR": "1", "COLUMNS": "200"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_import_rules_hold(copy: Path) -> None:
    """The source as it is breaks no rule; every rule of the configuration was looked at."""
    done = _lint_imports(copy)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in _contracts():
        assert f"{name} KEPT" in done.stdout


@pytest.mark.parametrize(
    ("file", "line", "rule"),
    [
        pytest.param("strategies/base.py", "from router import errors", STRATEGIES_RULE, id="strategy-imports-router"),
        pytest.param("strategies/base.py", "import asyncio", STRATEGIES_IO_RULE, id="strategy-imports-asyncio"),
        pytest.param("strategies/base.py", "import aiohttp.web", STRATEGIES_IO_RULE, id="strategy-imports-aiohttp"),
        pytest.param("router/errors.py", "import asyncio", PURE_RULE, id="core-imports-asyncio"),
        pytest.param("router/config/settings.py", "from aiohttp import web", PURE_RULE, id="core-imports-aiohttp"),
        pytest.param("router/providers/base.py", "import redis.asyncio", PURE_RULE, id="core-imports-redis"),
        pytest.param("router/process.py", "from opentelemetry import trace", TRACING_RULE, id="serving-imports-opentelemetry"),
        pytest.param("router/errors.py", "from router import tasks", PURE_RULE, id="core-imports-asyncio-through-another-module"),
    ],
)
def test_breaking_an_import_rule_is_noticed(copy: Path, file: str, line: str, rule: str) -> None:
    """One forbidden import, direct or through a module of ours, fails the check by the rule's name."""
    with (copy / file).open("a", encoding="utf-8") as source:
        source.write(f"\n\ndef spoilt() -> None:\n    {line}\n")
    done = _lint_imports(copy)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"{rule} BROKEN" in done.stdout


def test_every_package_is_a_regular_one() -> None:
    """A folder without ``__init__.py`` is a namespace: parts of another, installed copy would mix with this one's."""
    folders = {path.parent for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    # A child's parents count as well, up to the package itself.
    folders |= {parent for folder in folders for parent in folder.parents if parent.is_relative_to(ROOT) and parent != ROOT}
    assert [str(folder.relative_to(ROOT)) for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []


def test_every_module_of_the_pure_core_is_under_its_rule() -> None:
    """A core module that is added without being named in the contract would be free to import anything."""
    named = set(_contracts()[PURE_RULE]["source_modules"])
    assert [module for module in PURE_CORE if _exists(module) and module not in named] == []


def _ruff(file: str, source: str) -> set[str]:
    """Return the rules that ``source`` breaks as if it stood in ``file``."""
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "concise", "--stdin-filename", file, "-"],
        cwd=ROOT,
        input=source,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    return {line.split()[1] for line in done.stdout.splitlines() if line.startswith(file)}


TASK = '"""A module."""\n\nimport asyncio\n\ntask = asyncio.{function}(asyncio.sleep(0))\n'
DRAW = '"""A module."""\n\nimport random\n\nvalue = random.{function}\n'


@pytest.mark.parametrize("function", ["create_task", "ensure_future"])
def test_a_task_without_an_owner_is_noticed(function: str) -> None:
    """Only the one helper starts tasks; anywhere else in the product the linter objects."""
    assert "TID251" in _ruff("router/routing.py", TASK.format(function=function))
    assert "TID251" not in _ruff("router/tasks.py", TASK.format(function=function))


@pytest.mark.parametrize("function", ["random()", "choice([1])", "shuffle([])", "uniform(0, 1)"])
def test_drawing_from_the_shared_generator_is_noticed(function: str) -> None:
    """No seed reproduces the module's own generator; an injected one is fine."""
    assert "TID251" in _ruff("strategies/p2c.py", DRAW.format(function=function))
    assert "TID251" not in _ruff("strategies/p2c.py", DRAW.format(function=f"Random(1).{function}"))


def _calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def _starts_task_on_loop(call: ast.Call) -> bool:
    """Tell ``loop.create_task(…)`` and ``asyncio.get_running_loop().create_task(…)``, which the linter cannot name."""
    if not isinstance(call.func, ast.Attribute) or call.func.attr != "create_task":
        return False
    owner = call.func.value
    if isinstance(owner, ast.Call):
        owner = owner.func
    name = owner.attr if isinstance(owner, ast.Attribute) else owner.id if isinstance(owner, ast.Name) else ""
    return "loop" in name


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("loop.create_task(x())", True),
        ("self._loop.create_task(x())", True),
        ("asyncio.get_running_loop().create_task(x())", True),
        ("group.create_task(x())", False),
        ("tasks.spawn(x(), name='x')", False),
    ],
)
def test_tasks_of_the_loop_are_told_apart(source: str, found: bool) -> None:
    """The check below sees the three ways to go around the linter, and lets a task group be."""
    assert any(map(_starts_task_on_loop, _calls(ast.parse(source)))) is found


def test_no_task_is_started_on_the_loop_itself() -> None:
    """``loop.create_task`` is ``asyncio.create_task`` by another name."""
    found = [
        f"{path.relative_to(ROOT)}:{call.lineno}"
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        for call in _calls(ast.parse(path.read_text(encoding="utf-8")))
        if _starts_task_on_loop(call)
    ]
    assert found == []
