"""One script for each question: ``python -m benchmarks.<name>`` prints one JSON line.

A line holds the figures with their spread, what they cost in CPU and memory, and the machine. ``--quick`` makes a run
of seconds that only shows that it works, which is what the tests do.
"""
