"""The version, in its only place: the build, ``--version`` and the build-info metric read it here."""

__version__ = "0.1.0"
