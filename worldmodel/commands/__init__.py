"""One function per command of the `worldmodel` program.

Separate from `cli.py`, which parses and reports: a command takes a typed config and a run folder and returns a record.
"""
