"""The documents say what the program does: codes, links, metrics, commands, keys, log lines and paths in them exist."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from itertools import chain
from pathlib import Path
from typing import get_args, get_type_hints

import click
import pytest
import yaml

from router import errors, generations
from router.cli import main
from router.config import json_schema, load_text
from router.config.settings import DrainSettings
from router.errors import ConfigError, RouterError, UpstreamError
from strategies import get, known_names
from strategies import options_of as options_of_strategy

ROOT = Path(__file__).parents[2]
GUIDE = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = [ROOT / "README.md", *GUIDE]
# What these say in code style may be another program's.
FOREIGN = {"behind-a-proxy.md", "install.md", "observe.md", "tracing.md"}
# And these words of the others: nginx, Compose, Kubernetes, Envoy, a strategy's class.
FOREIGN_WORDS = {"least_conn", "stop_grace_period", "immutable", "upstream_proxy_protocol", "shared"}
OWN = [document for document in DOCUMENTS if document.name not in FOREIGN]
# What a provider, a client or an operator's shell sees is not what the router says.
NOT_THE_SERVER = ("simulator", "ctl", "cli.py", "demo.py", "talk.py", "library.py", "local.py")
# They only stand for an end without a CLOSE, and never travel (RFC 6455 §7.4.1).
NEVER_SENT = {1005, 1006, 1015}

by_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
by_own = pytest.mark.parametrize("document", OWN, ids=lambda path: path.relative_to(ROOT).as_posix())


# --- reading documents ---------------------------------------------------------------------------


@cache
def text_of(document: Path) -> str:
    return document.read_text(encoding="utf-8")


def blocks(document: Path, language: str) -> list[str]:
    """Return the fenced blocks of a language; empty: those that name none."""
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", text_of(document), re.MULTILINE | re.DOTALL)


def prose(document: Path) -> str:
    """Return a document without its fenced blocks."""
    return re.sub(r"^ *```.*?^ *```", "", text_of(document), flags=re.MULTILINE | re.DOTALL)


def spans(document: Path) -> list[str]:
    """Return what stands in code style in a document's sentences and tables."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(document))]


def table(document: Path, heading: str) -> list[dict[str, str]]:
    """Return the rows of the first table below a heading, by their columns' names, without code style."""
    section = text_of(document).split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    names, _, *rows = [[cell.strip().replace("`", "") for cell in line.strip("|").split(" |")] for line in lines]
    assert all(len(row) == len(names) for row in rows)
    return [dict(zip(names, row, strict=True)) for row in rows]


def slugs(document: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    found: dict[str, int] = {}
    made: set[str] = set()
    for heading in re.findall(r"^#+ +(.+?)\s*$", prose(document), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        number = found.get(slug, 0)
        found[slug] = number + 1
        made.add(f"{slug}-{number}" if number else slug)
    return made


# --- reading the program -------------------------------------------------------------------------


@cache
def trees() -> dict[str, ast.Module]:
    """Return the modules of the router, by their path in it."""
    folder = ROOT / "router"
    return {path.relative_to(folder).as_posix(): ast.parse(path.read_bytes()) for path in sorted(folder.rglob("*.py"))}


def nodes(*, under: tuple[str, ...] = ("",)) -> Iterator[ast.AST]:
    """Yield the syntax of what serves clients and operators."""
    for name, tree in trees().items():
        if not name.startswith(NOT_THE_SERVER) and name.startswith(under):
            yield from ast.walk(tree)


def calls(*, under: tuple[str, ...] = ("",)) -> Iterator[tuple[str, list[object], dict[str, object]]]:
    """Yield the calls with their name and those of their arguments that are known: constants, and ``X.code`` of an error."""
    for node in nodes(under=under):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            known = {word.arg: value(word.value) for word in node.keywords if word.arg is not None}
            yield name, [value(argument) for argument in node.args], known


def value(node: ast.expr) -> object:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Attribute) and node.attr == "code" and isinstance(node.value, ast.Name):
        return getattr(getattr(errors, node.value.id, None), "code", None)
    return None


@cache
def words_of_the_program() -> frozenset[str]:
    """Return every word of the sources, and every key of the configuration."""
    sources = chain((ROOT / "router").rglob("*.py"), (ROOT / "strategies").rglob("*.py"))
    return frozenset(re.findall(r"[a-z][a-z0-9_]*", "\n".join(path.read_text(encoding="utf-8") for path in sources)))


@cache
def texts_of_the_program() -> frozenset[str]:
    """Return every text constant of the router."""
    return frozenset(
        node.value
        for tree in trees().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def sendable() -> Iterator[type[RouterError]]:
    """Yield the errors that a client may be told."""
    left: list[type[RouterError]] = [RouterError]
    while left:
        cls = left.pop()
        if not issubclass(cls, UpstreamError | ConfigError):
            yield cls
            left += cls.__subclasses__()


def refusals() -> set[tuple[int, str]]:
    """Return HTTP status and ``error.code`` of every refusal."""
    # Two bases that nobody raises have the words of those below them.
    found = {(cls.http_status, cls.code) for cls in sendable()}
    for _, _, known in calls():
        status, code = known.get("status"), known.get("code")
        if isinstance(status, int) and isinstance(code, str):
            found.add((status, code))
    for node in nodes():
        if not isinstance(node, ast.Dict):
            continue
        pairs = {value(key): value(item) for key, item in zip(node.keys, node.values, strict=True) if key is not None}
        for key, item in pairs.items():
            if not isinstance(item, str) or not re.fullmatch(r"[a-z_]+", item):
                continue
            if key == "code":
                found.add((400, item))  # written by hand, where there is no error to be raised
            elif isinstance(key, int) and not isinstance(key, bool):
                found.add((key, item))
    return found


# --- codes.md ------------------------------------------------------------------------------------

CODES = ROOT / "docs" / "codes.md"
SESSIONS, ELSEWHERE, ENDS = "Refused before a session", "Refused elsewhere", "Ends of a session"


def test_every_refusal_is_documented_and_none_is_made_up() -> None:
    """Status and ``error.code`` of the tables are those of the errors and of every answer that is made by hand."""
    rows = table(CODES, SESSIONS) + table(CODES, ELSEWHERE)
    assert {(int(row["status"]), row["code"]) for row in rows} == refusals()


def test_types_and_close_codes_are_the_errors_own() -> None:
    """Each error's row has its ``error.type`` and, where a browser is told by it, its close code."""
    rows = table(CODES, SESSIONS) + table(CODES, ELSEWHERE)
    for cls in sendable():
        own = [row for row in rows if (int(row["status"]), row["code"]) == (cls.http_status, cls.code)]
        assert {row["type"] for row in own} == {cls.error_type}, cls
        # No upgrade that could be accepted, or a fault in the midst of it.
        told_by_status = cls.http_status in (426, 500)
        assert {row["close"] for row in own if "close" in row} <= {"–" if told_by_status else str(cls.close_code)}, cls


def test_every_session_error_stands_among_the_sessions() -> None:
    """What can be raised for a session's request is in the table with close codes."""
    documented = {row["code"] for row in table(CODES, SESSIONS)}
    elsewhere = {"unavailable", "too_many_logins"}
    assert {cls.code for cls in sendable()} - documented <= elsewhere


def test_every_close_code_of_the_relay_is_documented_and_none_is_made_up() -> None:
    """Close codes of running sessions are those that the relay, its scanner and the drain send."""
    sent: set[int] = set(get_args(get_type_hints(DrainSettings)["code"]))
    for node in nodes(under=("relay/relay.py",)):
        if isinstance(node, ast.Constant) and isinstance(node.value, int) and 1000 <= node.value <= 1015:
            sent.add(node.value)
    for name, arguments, _ in calls(under=("relay/",)):
        if name == "FrameError" and isinstance(arguments[0], int):
            sent.add(arguments[0])
    assert {int(row["close"]) for row in table(CODES, ENDS)} == sent - NEVER_SENT


def test_every_error_event_and_reason_of_an_end_is_documented() -> None:
    """Events before a CLOSE of the router's own, and its reasons, are those of the code."""
    rows = table(CODES, ENDS)
    events, reasons = set(), set()
    for name, arguments, known in calls():
        if name == "error_event" and isinstance(arguments[0], str):
            events.add(arguments[0])
        reason = known.get("reason")
        if name in ("end", "end_all", "end_quietly") and isinstance(reason, str):
            reasons.add(reason)
    for node in nodes(under=("relay/relay.py",)):
        if isinstance(node, ast.Tuple) and len(node.elts) == 2:
            code, reason = map(value, node.elts)
            if isinstance(code, int) and isinstance(reason, str) and reason:
                reasons.add(reason)
    assert {row["code of the error event"] for row in rows} - {"–"} == events
    # What is wrong with a frame is told in as many ways as there are.
    assert {row["reason"] for row in rows if row["close"] not in ("1002", "1007", "1009")} - {"–"} == reasons


# --- configure.md and troubleshooting.md ---------------------------------------------------------


def test_what_waits_for_a_restart_is_what_is_kept() -> None:
    """The table of configure.md lists the keys that a reload does not put in force, and no other."""
    section = text_of(ROOT / "docs" / "configure.md").split("### What waits for a restart")[1]
    listed = re.findall(r"^\| `([a-z_.]+)` \|", section, re.MULTILINE)
    kept = [key for key, _ in generations._FIXED] + [generations._TLS, generations._FLEET]
    assert [key for key in listed if key.startswith(("general_settings.", "router_settings."))] == kept


def test_each_symptom_says_how_to_find_out_and_what_to_do() -> None:
    """Every entry has both, and says them in this order."""
    _, *entries = re.split(r"^### ", text_of(ROOT / "docs" / "troubleshooting.md"), flags=re.MULTILINE)
    assert len(entries) >= 25
    for entry in entries:
        assert re.search(r"- \*\*Find out:\*\* .*^- \*\*Do:\*\* ", entry, re.MULTILINE | re.DOTALL), entry.splitlines()[0]


# --- every document ------------------------------------------------------------------------------


@by_document
def test_links_lead_somewhere(document: Path) -> None:
    """Every relative link leads to a file of the project, and to a heading in it where it names one."""
    dead = []
    for target in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", prose(document)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (document.parent / name).resolve() if name else document
        if not file.is_relative_to(ROOT) or not file.exists() or (anchor and anchor not in slugs(file)):
            dead.append(target)
    assert dead == []


def test_the_guide_has_an_index() -> None:
    """docs/README.md names every document of the guide."""
    index = text_of(ROOT / "docs" / "README.md")
    assert [document.name for document in GUIDE if document.name != "README.md" and f"({document.name})" not in index] == []


@by_document
def test_metrics_exist(document: Path) -> None:
    """Every metric that is named stands in metrics.md."""
    listed = set(re.findall(r"^\| `([a-z_]+)` \|", text_of(ROOT / "docs" / "metrics.md"), re.MULTILINE))
    # The text's own "realtime_router_…" has nothing behind it.
    named = set(re.findall(r"\brealtime_router_[a-z_]*[a-z]\b|\bprocess_[a-z_]*[a-z]\b(?=`)", text_of(document)))
    assert {name for name in named - listed if re.sub(r"_(bucket|sum|count)$", "", name) not in listed} == set()


def command_lines(document: Path) -> Iterator[list[str]]:
    """Yield what stands behind ``realtime-router`` wherever that is called, in sentences and in blocks."""
    indented = re.findall(r"^ {4,}(.+)$", prose(document), re.MULTILINE)
    fenced = [block for language in ("", "sh", "bash", "console") for block in blocks(document, language)]
    for line in chain(spans(document), indented, *map(str.splitlines, fenced)):
        # A comment, what follows in a pipe, and the brackets of what may be left out.
        called = re.split(r"\s#|[|>&;]", line.removeprefix("$ "))[0].strip()
        called = re.sub(r"^(\.venv-run/bin|venv/bin)/", "", called)
        words = shlex.split(called.replace("[", " ").replace("]", " ")) if called.startswith(("realtime-router ", "ctl ")) else []
        if words:
            yield words[words[0] == "realtime-router" :]


def options_of(command: click.Command) -> set[str]:
    return {"--help", "-h", *chain.from_iterable((*item.opts, *item.secondary_opts) for item in command.params)}


def fault_of(line: list[str]) -> str | None:
    """Return what of a command line does not exist; ``None``: all of it does."""
    command: click.Command | None = main  # ``None``: its own arguments follow
    options = options_of(main)
    for word in line:
        if word.startswith("-"):
            if word.partition("=")[0] not in options:
                return word
        elif isinstance(command, click.Group) and word in command.commands:
            command = command.commands[word]
            options = options_of(command)
        elif isinstance(command, click.Group) and (word == "…" or word == "COMMAND"):
            options = set(chain.from_iterable(map(options_of, command.commands.values())))
            command = None
        elif isinstance(command, click.Group) and (command is not main or word == line[0]):
            return word
    return None


@by_document
def test_commands_and_options_exist(document: Path) -> None:
    """Every command line of the program that is shown could be typed."""
    assert [(line, fault) for line in command_lines(document) if (fault := fault_of(line)) is not None] == []


def test_the_readme_lists_every_command() -> None:
    """No command is missing from the README's table, and ``ctl``'s row has all of its own."""
    rows = [line for line in text_of(ROOT / "README.md").splitlines() if line.startswith("| `realtime-router ")]
    listed = {shlex.split(re.findall(r"`([^`]+)`", row)[0])[1] for row in rows}
    assert set(main.commands) <= listed
    ctl = main.commands["ctl"]
    assert isinstance(ctl, click.Group)
    (row,) = (row for row in rows if " ctl " in row)
    assert {span.split()[0] for span in re.findall(r"`([^`]+)`", row)[1:]} == set(ctl.commands)


@by_own
def test_lone_options_exist(document: Path) -> None:
    """An option that is named alone is one of some command."""
    known: set[str] = set()
    left: list[click.Command] = [main]
    while left:
        command = left.pop()
        known |= options_of(command)
        left += command.commands.values() if isinstance(command, click.Group) else ()
    assert {span for span in spans(document) if re.fullmatch(r"--[a-z-]+", span)} - known == set()


@cache
def keys_of_the_schema() -> dict[str, frozenset[str]]:
    """Return the configuration's keys by the section's name, and under an empty name all of them."""
    schema = json_schema()
    parts = schema["$defs"]
    sections = {
        "general_settings": "GeneralSettings",
        "router_settings": "RouterSettings",
        "litellm_settings": "LitellmSettings",
        "litellm_params": "Params",
        "model_info": "ModelInfo",
        "drain": "Drain",
        "tls": "ListenTls",
        "health_check": "HealthCheck",
        "keys": "VirtualKey",
    }
    keys = {section: frozenset(parts[name]["properties"]) for section, name in sections.items()}
    keys["groups"] = keys["router_settings"]
    keys[""] = frozenset(schema["properties"]).union(*(part.get("properties", {}) for part in parts.values()))
    return keys


@by_document
def test_keys_with_their_section_exist(document: Path) -> None:
    """``section.key`` in code style is a key of that section."""
    keys = keys_of_the_schema()
    unknown = []
    for span in spans(document):
        match = re.match(r"(?:model_list\[\w*\]\.)?([a-z_]+)\.([a-z_]+)(?:\.([a-z_]+))?\b(?!\()", span)
        if match is None or match[1] not in keys or re.search(r"\.(md|py|yaml|yml|conf|json)$", match[0]):
            continue
        section, key, below = match.groups()
        if key not in keys[section] or (below is not None and key in keys and below not in keys[key]):
            unknown.append(span)
    assert unknown == []


@by_own
def test_keys_with_their_value_exist(document: Path) -> None:
    """``key: value`` in code style is a key of the configuration."""
    keys = keys_of_the_schema()[""]
    found = {match[1] for span in spans(document) if (match := re.match(r"([a-z_]+): \S", span))}
    # ``fleet: …`` begins a line of the log; a strategy's options are no part of the schema.
    options = {field.name for name in known_names() for field in fields(options_of_strategy(get(name)))}
    lines = {text.partition(": ")[0] for text in texts_of_the_program()}
    assert found - keys - options - lines - FOREIGN_WORDS == set()


@by_document
def test_yaml_of_the_router_has_no_unknown_key(document: Path) -> None:
    """Every block that is a part of a configuration has keys of the schema only."""
    sections = set(json_schema()["properties"])
    for block in blocks(document, "yaml"):
        if not any(isinstance(part, dict) and sections & part.keys() for part in yaml.safe_load_all(block)):
            continue
        try:
            load_text(block, environ={})
        except ConfigError as error:
            assert [str(problem) for problem in error.problems if "unknown" in problem.found] == []


@by_own
def test_words_in_code_style_are_the_programs(document: Path) -> None:
    """A word_with_underscores in code style is a key, a code, a label or a name of the program."""
    found = {span for span in spans(document) if re.fullmatch(r"[a-z]+(_[a-z0-9]+)+", span)}
    metrics = set(re.findall(r"`([a-z_]+)`", text_of(ROOT / "docs" / "metrics.md")))
    assert found - words_of_the_program() - keys_of_the_schema()[""] - metrics - FOREIGN_WORDS == set()


@by_own
def test_log_lines_exist(document: Path) -> None:
    """What is named as a line of the log is one."""
    named = re.findall(r"\blog(?:'s)?(?: line)?\s+`([^`]+)`", prose(document), re.IGNORECASE)
    assert {" ".join(name.split()) for name in named} - texts_of_the_program() == set()


@by_own
def test_paths_exist(document: Path) -> None:
    """Every path of the router that is named is served, but for the one that is said not to be."""
    served = {text.rstrip("/") for text in texts_of_the_program() if text.startswith("/")} | {"/v1/realtime/client_secrets"}
    begins = r"(?:(?:GET|POST) )?(/(?:admin|health|metrics|v1|openai|realtime|dashboard)[\w/{}.-]*)(…|\*)?"
    missing = []
    for span in spans(document):
        match = re.fullmatch(begins + r"(?:\?.*)?", span)
        if match is None:
            continue
        path = match[1].rstrip("/")
        if not any(one.startswith(path) if match[2] else one == path for one in served | {"/admin"}):
            missing.append(span)
    assert missing == []
