"""One script for each question: ``python -m benchmarks.<name>`` prints one JSON line for each thing it measured.

A line holds the numbers, their spread and the machine. ``--quick`` makes a run of seconds, which the tests do.
"""
