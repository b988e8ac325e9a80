"""What an engine knows of other sites: the links to them, who may do what, and what becomes of ways that break.

It carries the legs of streams to and fro, and knows nothing of what runs on them.
"""
