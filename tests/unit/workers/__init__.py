"""Tests of ``router.workers``."""
