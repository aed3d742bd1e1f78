"""``file:PATH``: values that stand in files of their own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from router.config import ConfigError, Loaded, load

KEY = "sk-from-a-file-0123456789"


def config(folder: Path, *, key: str = "file:secrets/xai", master: str | None = None) -> Path:
    """Write a configuration of one deployment with a key."""
    general = "" if master is None else f"general_settings: {{master_key: {master!r}}}\n"
    text = (
        "model_list:\n  - model_name: voice\n    litellm_params: {model: xai/grok-voice, api_key: '" + key + "'}\n"
        "    model_info: {id: one}\n" + general
    )
    file = folder / "config.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def loaded(file: Path) -> Loaded:
    """Load with an empty environment."""
    return load(file, environ={})


def test_a_secret_is_read_from_its_file(tmp_path: Path) -> None:
    """Relative to the configuration's folder, without the line break at its end; the file is named as part of it."""
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "xai").write_text(f"{KEY}\n", encoding="utf-8")
    result = loaded(config(tmp_path))
    (deployment,) = result.settings.groups["voice"].deployments
    assert deployment.api_key is not None and deployment.api_key.reveal() == KEY
    assert result.files == (str(tmp_path / "secrets" / "xai"),)


def test_a_missing_file_takes_the_deployment_out_of_service(tmp_path: Path) -> None:
    """As an unset variable does; none is left here, so it is an error with its line."""
    with pytest.raises(ConfigError) as caught:
        loaded(config(tmp_path))
    (problem,) = caught.value.problems
    assert (problem.line, problem.path) == (3, "model_list[0].litellm_params.api_key")
    assert problem.found == "the file secrets/xai, which cannot be read (no such file or directory)"


@pytest.mark.parametrize(
    ("content", "found"),
    [
        pytest.param(b"", "which is empty", id="empty"),
        pytest.param(b" \n", "which is empty", id="blank"),
        pytest.param(b"\xff\xfe\x00", "which is not UTF-8", id="binary"),
        pytest.param(b"x" * (64 * 1024 + 1), "which is too long", id="long"),
    ],
)
def test_what_is_no_secret_is_told(tmp_path: Path, content: bytes, found: str) -> None:
    """For a key of the router itself it is an error, never 'no key'."""
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "xai").write_text(KEY, encoding="utf-8")
    (tmp_path / "master").write_bytes(content)
    with pytest.raises(ConfigError, match=found) as caught:
        loaded(config(tmp_path, master="file:master"))
    assert caught.value.problems[0].path == "general_settings.master_key"


def test_special_files_do_not_block(tmp_path: Path) -> None:
    """A pipe without a writer, a folder, and no name at all."""
    (tmp_path / "secrets").mkdir()
    os.mkfifo(tmp_path / "pipe")
    wrong = {"pipe": "no regular file", "secrets": "cannot be read|no regular file", "": "without a file's name"}
    for name, found in wrong.items():
        with pytest.raises(ConfigError, match=found):
            loaded(config(tmp_path, key=f"file:{name}"))


def test_its_value_is_never_shown(tmp_path: Path) -> None:
    """A secret in the place of a number is told by its file."""
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "xai").write_text(KEY, encoding="utf-8")
    file = config(tmp_path)
    file.write_text(file.read_text(encoding="utf-8") + "general_settings: {max_sessions: 'file:secrets/xai'}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        loaded(file)
    assert "the value of the file secrets/xai" in str(caught.value) and KEY not in str(caught.value)
