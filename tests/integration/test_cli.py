"""The command line as a user meets it: results on standard output, complaints on standard error, exit codes, no traceback."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from router._version import __version__
from router.cli import main
from router.config.settings import Secret
from tests.helpers.processes import ROOT, environment, run

EXAMPLE = ROOT / "config.example.yaml"
KEY = "sk-cli-0123456789abcdefghij"
GOOD = f"""\
model_list:
  - model_name: voice
    litellm_params:
      model: openai/gpt-realtime
      api_key: {KEY}
    model_info:
      mode: realtime
"""
BAD = f"""\
model_list:
  - model_name: voice
    litellm_params:
      model: openai/gpt-realtime
      api_key: {KEY}
      wieght: 2
      max_sessions: none
    model_info:
      mode: realtime
router_settings:
  stagger_s: -1
"""


@pytest.fixture(autouse=True)
def process_as_before() -> Iterator[None]:
    """Serving changes what SIGHUP does and holds the collector; here it happens in the test's own process."""
    before = signal.getsignal(signal.SIGHUP)
    yield
    signal.signal(signal.SIGHUP, before)
    gc.enable()


def invoke(*arguments: str | Path, environ: dict[str, str | None] | None = None) -> Result:
    """Run the command line in this process. What it did not catch is raised here."""
    return CliRunner().invoke(main, [str(item) for item in arguments], env=environ, catch_exceptions=False)


def config(folder: Path, text: str | bytes) -> Path:
    """Write a configuration."""
    path = folder / "config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# --- check ---------------------------------------------------------------------------------------


def test_check_of_a_good_file(tmp_path: Path) -> None:
    """A usable file is confirmed in one line with what it holds, exit code 0, nothing else."""
    result = invoke("check", config(tmp_path, GOOD))
    assert result.exit_code == 0
    assert result.stdout == f"{tmp_path}/config.yaml: ok: 1 group, 1 deployment\n"
    assert result.stderr == ""


def test_check_of_the_example(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped example is usable as it is, given its environment variables."""
    names = re.findall(r"^[^#\n]*os\.environ/(\w+)", EXAMPLE.read_text(), re.MULTILINE)
    for name in names:
        monkeypatch.setenv(name, "https://example.openai.azure.com" if name.endswith("_BASE") else f"{name.lower()}-0123456789")
    result = invoke("check", EXAMPLE)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "ok: 3 groups, 4 deployments" in result.stdout


def test_check_tells_every_problem_with_its_line(tmp_path: Path) -> None:
    """All faults come at once: file, line, path, what was found, what was expected, the nearest known key; exit code 2."""
    path = config(tmp_path, BAD)
    result = invoke("check", path)
    assert (result.exit_code, result.stdout) == (2, "")
    lines = result.stderr.splitlines()
    assert [line.partition(": ")[0] for line in lines[:-1]] == [f"{path}:{number}" for number in (6, 7, 11)]
    assert "'wieght'" in lines[0] and "weight" in lines[0].partition("expected")[2]
    assert "model_list[0].litellm_params.max_sessions" in lines[1]
    assert "router_settings.stagger_s: found -1" in lines[2]
    assert lines[-1] == f"3 problems in {path}"
    assert KEY not in result.stderr


def test_check_warns_on_stderr(tmp_path: Path) -> None:
    """What is ignored is told as a warning, and the file stays usable."""
    result = invoke("check", config(tmp_path, GOOD + "litellm_settings:\n  drop_params: true\n"))
    assert result.exit_code == 0
    assert "ok: 1 group" in result.stdout
    assert result.stderr.startswith("warning: ")
    assert "drop_params" in result.stderr


@pytest.mark.parametrize("command", [["check"], ["--config"]])
def test_a_file_that_is_not_there(tmp_path: Path, command: list[str]) -> None:
    """A missing file is a sentence and exit code 2, for checking and for serving."""
    path = tmp_path / "nowhere.yaml"
    result = invoke(*command, path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"{path}: (file): found no such file" in result.stderr


def test_serving_a_bad_file(tmp_path: Path) -> None:
    """Serving refuses what ``check`` refuses, with the same words."""
    path = config(tmp_path, BAD)
    served, checked = invoke("--config", path, "--port", "0"), invoke("check", path)
    assert served.exit_code == checked.exit_code == 2
    assert served.stderr == checked.stderr
    assert served.stdout == ""


def test_another_host_without_a_key(tmp_path: Path) -> None:
    """``--host`` cannot open a keyless router to the world; the complaint names the option."""
    result = invoke("--config", config(tmp_path, GOOD), "--host", "0.0.0.0", "--port", "0")
    assert result.exit_code == 2
    assert "--host: found the address '0.0.0.0' without any key" in result.stderr
    assert "master_key" in result.stderr


# --- odd files -----------------------------------------------------------------------------------

ODD: dict[str, bytes] = {
    "empty": b"",
    "spaces": b" \n\t\n",
    "null": b"null",
    "a number": b"42",
    "a list": b"- a\n- b\n",
    "NUL": b"model_list: \x00",
    "not UTF-8": b"model_list: \xff\xfe\xfa",
    "UTF-16": GOOD.encode("utf-16"),
    "a BOM alone": b"\xef\xbb\xbf",
    "a tab": b"model_list:\n\t- model_name: x\n",
    "two documents": f"{GOOD}---\n{GOOD}".encode(),
    "deep": b"[" * 20_000,
    "deep mapping": b"{a: " * 20_000,
    "aliases of aliases": b"a: &a [x, x]\n" + b"".join(b"a%d: &a%d [*a%d, *a%d]\n" % (i + 1, i + 1, i, i) for i in range(1, 60)),
    "a loop": b"model_list: &a [*a]\n",
    "an object": b"model_list: !!python/object/apply:os.system ['true']\n",
    "a merge of itself": b"a: &a\n  <<: *a\n",
    "binary": bytes(range(256)) * 40,
    "a huge number": b"router_settings: {stagger_s: 1e999, num_retries: " + b"9" * 5000 + b"}\n",
    "a key that is a list": b"? [a, b]\n: c\n",
    "control characters": "model_list: [{model_name: '\x1b[31mred', litellm_params: {model: '\u202eevil'}}]\n".encode(),
    "the model list is text": b"model_list: voice\n",
    "a duplicate": b"model_list: []\nmodel_list: []\n",
    "ELF": b"\x7fELF\x02\x01\x01" + bytes(100),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_files(tmp_path: Path, name: str) -> None:
    """No file gives a traceback: each is refused with 2 and its problems, and nothing of it can steer the terminal."""
    path = config(tmp_path, ODD[name])
    result = invoke("check", path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(str(path))
    assert re.search(r"^\d+ problems? in ", result.stderr.splitlines()[-1])
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e]", result.stderr)


@pytest.mark.parametrize("target", ["folder", "/dev/zero", "/dev/null", "name\nwith a line", "x" * 5000, "nul\0byte", ""])
def test_odd_names(tmp_path: Path, target: str) -> None:
    """Neither does a path that is no file: it is refused in one line."""
    path = tmp_path if target == "folder" else target
    result = invoke("check", path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "found" in result.stderr
    assert re.search(r"^1 problem in ", result.stderr.splitlines()[-1])


@given(text=st.one_of(st.text(max_size=200), st.binary(max_size=200)))
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, text: str | bytes) -> None:
    """Whatever a file holds, ``check`` ends with 0 or 2 and never by an exception."""
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    result = invoke("check", config(tmp_path_factory.mktemp("any"), data))
    assert result.exit_code == 2
    assert "problem" in result.stderr


_LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=10))
_SECTIONS = ["model_list", "router_settings", "general_settings", "litellm_settings", "groups", "environment_variables", "x-any"]
_KEYS = st.sampled_from(
    [
        *("model_name", "litellm_params", "model_info", "model", "api_key", "weight", "keys", "listen", "master_key", "voice"),
        *("fallbacks", "routing_strategy", "routing_strategy_args", "model_group_alias", "health_check", "mode", "id"),
    ]
)
_TREES = st.recursive(
    _LEAVES, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_KEYS, inner, max_size=4)), max_leaves=12
)


@given(document=st.dictionaries(st.sampled_from(_SECTIONS), _TREES, max_size=4))
def test_any_shape(tmp_path_factory: pytest.TempPathFactory, document: dict[str, Any]) -> None:
    """Known keys in unknown shapes are problems, not exceptions."""
    path = config(tmp_path_factory.mktemp("shape"), yaml.safe_dump(document))
    result = invoke("check", path)
    assert result.exit_code in (0, 2)
    assert (result.exit_code == 0) == result.stdout.endswith("\n")


# --- schema --------------------------------------------------------------------------------------


def resolved(schema: dict[str, Any], root: dict[str, Any]) -> list[dict[str, Any]]:
    """The alternatives of a schema, references followed."""
    if "$ref" in schema:
        target: Any = root
        for part in schema["$ref"].removeprefix("#/").split("/"):
            target = target[part]
        return resolved(target, root)
    branches = [item for key in ("anyOf", "oneOf", "allOf") for item in schema.get(key, [])]
    return [schema, *(found for branch in branches for found in resolved(branch, root))]


def fewest(alternatives: list[list[str]]) -> list[str]:
    """The alternative that fits best."""
    return min(alternatives, key=lambda problems: len(problems))


def unknown_keys(value: Any, schema: dict[str, Any], root: dict[str, Any], path: str = "") -> list[str]:
    """Keys of a document that a schema knows nothing of; enough to tell an editor's false alarms."""
    options = resolved(schema, root)
    if isinstance(value, dict):
        found = []
        for key, inner in value.items():
            homes = [option["properties"][key] for option in options if key in option.get("properties", {})]
            rest = [option.get("additionalProperties") for option in options]
            others = [item for item in rest if isinstance(item, dict)]
            open_ended = True in rest
            if homes or others:
                found += fewest([unknown_keys(inner, home, root, f"{path}.{key}") for home in [*homes, *others]])
            elif not open_ended:
                found.append(f"{path}.{key}")
        return found
    if isinstance(value, list):
        items = [option["items"] for option in options if isinstance(option.get("items"), dict)]
        return [
            problem
            for index, inner in enumerate(value)
            if items
            for problem in fewest([unknown_keys(inner, item, root, f"{path}[{index}]") for item in items])
        ]
    return []


def test_schema() -> None:
    """The schema is JSON Schema, every reference in it leads somewhere, and it knows every key of the example and no other."""
    result = invoke("schema")
    assert (result.exit_code, result.stderr) == (0, "")
    schema = json.loads(result.stdout)
    assert schema["type"] == "object"
    assert "model_list" in schema["properties"]
    for reference in re.findall(r'"\$ref": "#/([^"]+)"', result.stdout):
        target = schema
        for part in reference.split("/"):
            target = target[part]
        assert isinstance(target, dict)
    example = yaml.safe_load(EXAMPLE.read_text())
    assert unknown_keys(example, schema, schema) == []
    assert unknown_keys({**example, "modle_list": []}, schema, schema) == [".modle_list"]
    example["model_list"][0]["litellm_params"]["wieght"] = 1
    assert unknown_keys(example, schema, schema) == [".model_list[0].litellm_params.wieght"]


# --- key new -------------------------------------------------------------------------------------


def test_key_new(tmp_path: Path) -> None:
    """The printed YAML is ready to paste, its hash is that of the printed key, and no two keys are the same."""
    results = [invoke("key", "new", "--name", "team-a") for _ in range(3)]
    keys = set()
    for result in results:
        assert (result.exit_code, result.stderr) == (0, "")
        head, _, fragment = result.stdout.partition("\n\n")
        plain = head.rpartition(" ")[2]
        keys.add(plain)
        (entry,) = yaml.safe_load(fragment)["general_settings"]["keys"]
        assert entry == {"name": "team-a", "sha256": f"sha256:{hashlib.sha256(plain.encode()).hexdigest()}"}
        assert plain not in fragment
    assert len(keys) == 3
    assert min(map(len, keys)) >= 32
    checked = invoke("check", config(tmp_path, GOOD + results[0].stdout.partition("\n\n")[2]))
    assert (checked.exit_code, checked.stderr) == (0, "")


@pytest.mark.parametrize("name", ["my-app", "with: colon", "'quoted", "#hash", "true", "ä ö", "- dash"])
def test_key_new_with_an_odd_name(name: str) -> None:
    """A name that means something in YAML is written so that it means itself."""
    result = invoke("key", "new", "--name", name)
    assert result.exit_code == 0
    (entry,) = yaml.safe_load(result.stdout.partition("\n\n")[2])["general_settings"]["keys"]
    assert entry["name"] == name


# --- usage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--prot", "4000"),
        ("--port", "65536", "--config", "x"),
        ("--port", "http", "--config", "x"),
        ("serve",),
        ("check",),
        ("check", "a", "b"),
        ("--config", "x", "check", "y"),
        ("key",),
        ("simulate", "--fault", "explode"),
        ("simulate", "--dialect", "gemini"),
        ("simulate", "--pace", "0"),
        ("talk",),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...]) -> None:
    """Wrong usage ends with 2 and says what was wrong on standard error."""
    result = invoke(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Usage:" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("command", ["--help", "-h", "check --help", "schema -h", "simulate -h", "key new -h", "talk -h"])
def test_help(command: str) -> None:
    """Every command explains itself."""
    result = invoke(*command.split())
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith("Usage: ")


def test_help_names_every_command() -> None:
    """The list of commands has those that the README's table has, and the other way round."""
    listed = set(re.findall(r"^  (\w+) {2,}", invoke("--help").stdout.partition("Commands:")[2], re.MULTILINE))
    assert listed == set(main.commands)
    table = (ROOT / "README.md").read_text().partition("## Commands")[2].partition("\n## ")[0]
    documented = set(re.findall(r"^\| `realtime-router (\w+)", table, re.MULTILINE))
    assert documented == listed


async def test_version() -> None:
    """``--version`` in a process of its own, without loading what serving needs."""
    code, out, err = await run("--version")
    assert (code, out, err) == (0, f"realtime-router, version {__version__}\n", "")


def test_light_commands_load_little() -> None:
    """``--version`` and ``check`` answer without the web server, which takes several times as long to load as all the rest."""
    program = (
        "import sys\nfrom click.testing import CliRunner\nfrom router.cli import main\n"
        "for arguments in (['--version'], ['check', sys.argv[1]], ['key', 'new'], ['schema']):\n"
        "    result = CliRunner().invoke(main, arguments, catch_exceptions=False)\n"
        "    assert result.exit_code == 0 or arguments[0] == 'check', result.output\n"
        "heavy = {'aiohttp', 'asyncio', 'uvloop', 'structlog', 'tenacity', 'redis', 'ssl'} & set(sys.modules)\n"
        "print(sorted(heavy))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(EXAMPLE)], env=environment(), capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


async def test_a_file_with_a_problem_in_a_process(tmp_path: Path) -> None:
    """The whole way once, as a shell sees it: complaints on standard error, nothing on standard output, 2."""
    code, out, err = await run("--config", config(tmp_path, BAD), "--port", "0")
    assert (code, out) == (2, "")
    assert "3 problems in" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("command", [("schema",), ("--help",), ("check", str(EXAMPLE))])
def test_a_reader_that_leaves(command: tuple[str, ...]) -> None:
    """``realtime-router schema | head -1``: the reader's leaving is no failure worth a traceback."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "router", *command],
            env=environment(XAI_API_KEY="k" * 20, OPENAI_API_KEY="k" * 20, MASTER_KEY="k" * 20),
            stdin=subprocess.DEVNULL,
            stdout=writer,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    finally:
        os.close(writer)
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr
    assert done.returncode >= 0


def test_a_secret_does_not_print() -> None:
    """What the commands hold of a key cannot be printed by accident."""
    assert KEY not in f"{Secret(KEY)!r} {Secret(KEY)} {[Secret(KEY)]}"
