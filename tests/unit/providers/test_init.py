"""The table of providers and the meaning of their words."""

from __future__ import annotations

import subprocess
import sys

import pytest

from router.providers import PROVIDERS, ErrorKind, error_kind
from router.providers.headers import header_name_problem
from tests.unit.providers.helpers import WITH_KEY, target


def test_the_table() -> None:
    """Each provider is found by the name it gives itself."""
    assert set(PROVIDERS) == {"openai", "azure", "xai", "openai_compatible"}
    assert all(provider.name == name for name, provider in PROVIDERS.items())


@pytest.mark.parametrize(
    ("name", "variables", "required", "ready"),
    [
        ("openai", ("OPENAI_API_KEY",), True, "first_event"),
        ("azure", ("AZURE_API_KEY", "AZURE_OPENAI_API_KEY"), True, "first_event"),
        ("xai", ("XAI_API_KEY",), True, "first_event"),
        ("openai_compatible", (), False, "auto"),
    ],
)
def test_defaults(name: str, variables: tuple[str, ...], required: bool, ready: str) -> None:
    """Keys come from the provider's own variables alone, and only the silent kind is not waited for."""
    provider = PROVIDERS[name]
    assert (provider.key_variables, provider.key_required, provider.default_ready) == (variables, required, ready)


@pytest.mark.parametrize("name", ["openai", "xai"])
def test_the_default_base_is_what_is_dialled(name: str) -> None:
    """The base that the table names is the one a deployment without its own is dialled at."""
    base = PROVIDERS[name].default_api_base
    assert base is not None
    assert target(name, **WITH_KEY).url == f"{base}/realtime?model=m"


@pytest.mark.parametrize("name", list(PROVIDERS))
@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (("invalid_api_key",), ErrorKind.AUTHENTICATION),
        (("insufficient_quota",), ErrorKind.AUTHENTICATION),
        (("credit_balance_exhausted",), ErrorKind.AUTHENTICATION),
        (("account_deactivated",), ErrorKind.AUTHENTICATION),
        (("billing_hard_limit_reached",), ErrorKind.AUTHENTICATION),
        (("model_not_found",), ErrorKind.AUTHENTICATION),
        (("beta_api_shape_disabled",), ErrorKind.AUTHENTICATION),
        (("rate_limit_exceeded",), ErrorKind.RATE_LIMITED),
        (("", "insufficient_quota"), ErrorKind.AUTHENTICATION),
        (("unheard_of", "rate_limit_error"), ErrorKind.RATE_LIMITED),
        # The code tells more than the type.
        (("rate_limit_exceeded", "insufficient_quota"), ErrorKind.RATE_LIMITED),
        # Close reasons.
        (("invalid_request_error.invalid_api_key",), ErrorKind.AUTHENTICATION),
        (("server_error",), ErrorKind.OTHER),
        (("session_expired",), ErrorKind.OTHER),
        (("unknown_parameter", "invalid_request_error"), ErrorKind.OTHER),
        (("",), ErrorKind.OTHER),
        ((), ErrorKind.OTHER),
    ],
)
def test_error_kind(name: str, words: tuple[str, ...], kind: ErrorKind) -> None:
    """What an operator must act on, what heals by waiting, and the rest."""
    assert error_kind(PROVIDERS[name], *words) is kind


def test_azures_own_words() -> None:
    """Azure's gateway spells statuses as codes."""
    azure = PROVIDERS["azure"]
    assert error_kind(azure, "401") is ErrorKind.AUTHENTICATION
    assert error_kind(azure, "DeploymentNotFound") is ErrorKind.AUTHENTICATION
    assert error_kind(azure, "429") is ErrorKind.RATE_LIMITED
    assert error_kind(PROVIDERS["openai"], "401") is ErrorKind.OTHER


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("X-Team", None),
        ("Host", None),
        ("Connection", "the connection"),
        ("sec-websocket-key", "handshake"),
        ("a b", "not allowed"),
    ],
)
def test_header_name_problem(name: str, problem: str | None) -> None:
    """The check of a configuration can tell which extra header would never be sent."""
    found = header_name_problem(name)
    assert found is None if problem is None else problem in (found or "")


def test_importing_it_reads_no_configuration() -> None:
    """The configuration imports the providers, so they must not import it back, nor anything that is slow."""
    # The package itself may import anything; what is asked for is the providers' part alone.
    code = (
        "import sys, types; sys.modules['router.config'] = None\n"
        "sys.modules['router'] = package = types.ModuleType('router'); package.__path__ = ['router']\n"
        "import router.providers; print([m for m in ('asyncio', 'aiohttp', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "[]"
