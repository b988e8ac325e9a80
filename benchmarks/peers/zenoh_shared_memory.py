"""Zenoh with shared memory: as ``zenoh``, but between processes of one host bytes go by memory that both have mapped.

Not what a network gives, and so not what the others are compared with; here since it is Zenoh's best on one host.
"""

from __future__ import annotations

from functools import partial

from . import zenoh

LOOP = zenoh.LOOP
opener = partial(zenoh.opener, shared_memory=True)
site = partial(zenoh.site, shared_memory=True)
