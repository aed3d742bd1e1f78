"""The values the router works with."""

from __future__ import annotations

import pickle

import pytest

from router.config import DeploymentSettings, Secret


def test_a_secret_does_not_show() -> None:
    """No way to print it prints the value, formatting included."""
    secret = Secret("sk-value")
    for shown in (repr(secret), str(secret), f"{secret}", f"{secret!r:>40}", f"{[secret]} {secret!s}"):
        assert "sk-value" not in shown
    assert secret.reveal() == "sk-value"


def test_a_secret_is_not_pickled() -> None:
    """It cannot leave the process by the way of a pickle."""
    with pytest.raises(TypeError):
        pickle.dumps(Secret("sk-value"))


def test_secrets_compare_by_value() -> None:
    """Generations are compared, so equal keys must be equal."""
    assert Secret("a") == Secret("a") != Secret("b")
    assert len({Secret("a"), Secret("a")}) == 1
    assert Secret("a") != "a"


def test_a_deployment_does_not_show_where_a_secret_may_hide() -> None:
    """An ``api_base`` may carry a key in its query, a proxy a password, a command a token."""
    deployment = DeploymentSettings(
        id="d",
        group="g",
        position=0,
        provider="openai",
        model="m",
        api_key=Secret("hush1"),
        api_base="wss://h/v1?key=hush2",
        proxy="http://u:hush3@p",
        azure_ad_token=Secret("hush4"),
        azure_ad_token_command=("print", "hush5"),
        extra_headers={"A": Secret("hush6")},
        extra_query={"a": Secret("hush7")},
    )
    assert "hush" not in repr(deployment)
