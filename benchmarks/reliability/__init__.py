"""Attacks on the studio: hostile inputs, damage, kills, races; each is tried and must end well.

A module of this package that has ``TITLE`` and ``trials(folder, long)`` is an attack: ``python -m
benchmarks.reliability`` finds it, runs it and writes its row into ``docs/reliability.md``. ``long`` asks for the number
that the table states; the short form stands in the tests.
"""
