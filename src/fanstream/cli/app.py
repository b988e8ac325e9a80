"""The app that the commands belong to."""

from __future__ import annotations

from typing import Final

from cyclopts import App

commands: Final = App(name="fanstream", help="Streams of objects from one site to many, for federated learning.")
