"""The command that runs a hub: an engine that forwards between the sites that dial it, and nothing else."""

from __future__ import annotations

import logging
import signal
from pathlib import Path

import anyio
from rich.console import Console

from ..engine import StreamEngine
from ..errors import KitError
from ..security import Kit
from ..security.identity import Role
from .app import commands

_FAREWELLS = (signal.SIGINT, signal.SIGTERM)


@commands.command
def hub(kit: Path, *, verbose: bool = False) -> None:
    """Run a hub until it is interrupted or terminated; it says goodbye, and its sites' streams wait for its return.

    Parameters
    ----------
    kit
        The folder of the hub's kit.
    verbose
        Log what the engine does, not only what is wrong.
    """
    role = Kit.load(kit).identity.role
    if role is not Role.HUB:
        raise KitError(kit, f"is a {role}'s kit, and only a hub listens", "Give the kit of a hub")
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    anyio.run(_serve, kit, backend_options={"use_uvloop": _has_uvloop()})


def _has_uvloop() -> bool:
    try:
        import uvloop  # noqa: F401 - whether it is there is the question
    except ImportError:
        return False
    return True


async def _serve(kit: Path) -> None:
    with anyio.open_signal_receiver(*_FAREWELLS) as signals:
        async with StreamEngine.from_kit(kit) as engine:
            Console(highlight=False, soft_wrap=True).print(f"{engine.name} listens at {', '.join(engine.addresses)}")
            async for _signal in signals:
                return
