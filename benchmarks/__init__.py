"""Measurements. Each ``bench_NAME.py`` is one, run by ``python -m benchmarks [NAME …]``, as ``make bench`` does.

A measurement has a docstring that says what is measured and in which unit, and a ``main()`` that prints its result. Each runs
in a process of its own, so that none warms or burdens the next. Numbers compare only within one run on one machine.
"""
