"""Tests of ``router.listener``."""
