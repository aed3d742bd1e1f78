"""The kinds of upstream the router can dial, by the name that stands before the slash in ``litellm_params.model``.

A provider is one small file with one stateless class; ``base.Provider`` is its contract. To add one: write the file, name it
here. Importing this package is cheap and reads nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from router.providers.azure import Azure
from router.providers.base import ErrorKind, Forward, Provider, Target
from router.providers.openai import OpenAI
from router.providers.openai_compatible import OpenAICompatible
from router.providers.urls import api_base_problem
from router.providers.xai import XAI

__all__ = ["PROVIDERS", "ErrorKind", "Forward", "Provider", "Target", "api_base_problem", "error_kind"]

_ALL: tuple[Provider, ...] = (OpenAI(), Azure(), XAI(), OpenAICompatible())

PROVIDERS: Mapping[str, Provider] = MappingProxyType({provider.name: provider for provider in _ALL})


def error_kind(provider: Provider, *words: str) -> ErrorKind:
    """Tell what an upstream's words mean.

    Args:
        provider: whose table to use.
        words: ``error.code``, ``error.type`` or a close reason, the most telling first. A close reason such as
            ``invalid_request_error.invalid_api_key`` counts by what follows its last dot.

    Returns:
        The kind of the first word that is known, else ``OTHER``.
    """
    for word in words:
        kind = provider.errors.get(word) or provider.errors.get(word.rpartition(".")[2])
        if kind is not None:
            return kind
    return ErrorKind.OTHER
