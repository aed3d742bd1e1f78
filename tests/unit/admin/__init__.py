"""Tests of ``router.admin``."""
