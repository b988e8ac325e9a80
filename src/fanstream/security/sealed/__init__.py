"""Sealed streams: what a stream's opener and its sites hide from, and prove to, everyone between them.

Pure: keys, certificates, the time and random bytes are arguments. ``docs/explanation/sealed-streams.md`` specifies
every byte. No other part of the package calls a cryptographic primitive.

``suites`` names the primitives; ``messages`` are the canonical bodies that are signed; ``prekeys`` lets a site be sent
keys that it can forget; ``chunks`` seals and opens bulk data; ``sessions`` puts them together for one stream.
"""
