"""Train one model on digits that three sites keep to themselves; see what that costs against having all the data.

    python examples/federated_digits.py                      a server and three site processes, over TCP on loopback
    python examples/federated_digits.py --transport memory   the same, as tasks of one process

Each round the server streams the model's weights out, tensor by tensor. A site answers the last tensor with what its
own training made of them, and the server averages the answers. One site is slow, and one dies half-way: a quorum of
two is enough to go on. Exits with 0 if the federated model comes within 2 points of one trained on pooled data.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial

import anyio
import anyio.abc
import anyio.to_thread
import numpy as np
from rich.console import Console
from rich.live import Live
from rich.table import Table
from sklearn.datasets import load_digits

from fanstream import Quorum, ReturnCode, Shareable, StreamEngine, StreamOptions
from fanstream.streamers import TensorProducer, register_tensors

SITES = ("site-1", "site-2", "site-3")
DOOMED, SLOW = "site-2", "site-3"
SLOWNESS = 0.5  # seconds that the slow site adds to each round
ROUNDS, EPOCHS = 24, 3
CHANNEL, TOPIC = "digits", "train"


# --- The data: 1797 images of 8 x 8, a quarter of them held out ---


def load() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    digits = load_digits()
    order = np.random.default_rng(1).permutation(len(digits.target))
    images, labels = (digits.data[order] / 16).astype(np.float32), digits.target[order]
    held_out = len(labels) // 4
    return images[held_out:], labels[held_out:], images[:held_out], labels[:held_out]


def share_of(site: str) -> tuple[np.ndarray, np.ndarray]:
    """A site has 70% of the images of the labels that are its own, and 15% of those of the others."""
    images, labels, _, _ = load()
    chances = np.full((10, len(SITES)), 0.15)
    chances[np.arange(10), np.arange(10) % len(SITES)] = 0.7
    draw = np.random.default_rng(2).random(len(labels))
    owner = (draw[:, None] > np.cumsum(chances, axis=1)[labels]).sum(axis=1).clip(max=len(SITES) - 1)
    mine = owner == SITES.index(site)
    return images[mine], labels[mine]


# --- The model: 64 inputs, 48 hidden units, 10 classes ---


def new_weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {
        "hidden.weight": (rng.standard_normal((64, 48)) * 0.15).astype(np.float32),
        "hidden.bias": np.zeros(48, np.float32),
        "output.weight": (rng.standard_normal((48, 10)) * 0.15).astype(np.float32),
        "output.bias": np.zeros(10, np.float32),
    }


def forward(weights: dict[str, np.ndarray], images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    hidden = np.maximum(images @ weights["hidden.weight"] + weights["hidden.bias"], 0)
    return hidden, hidden @ weights["output.weight"] + weights["output.bias"]


def train(
    weights: dict[str, np.ndarray], images: np.ndarray, labels: np.ndarray, epochs: int, seed: int
) -> dict[str, np.ndarray]:
    """Gradient descent on the cross-entropy, in batches of 32; returns new weights."""
    weights = {name: value.copy() for name, value in weights.items()}
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        order = rng.permutation(len(labels))
        for start in range(0, len(order), 32):
            batch = order[start : start + 32]
            hidden, scores = forward(weights, images[batch])
            error = np.exp(scores - scores.max(axis=1, keepdims=True))
            error /= error.sum(axis=1, keepdims=True)
            error[np.arange(len(batch)), labels[batch]] -= 1
            error *= 0.2 / len(batch)  # the learning rate
            back = (error @ weights["output.weight"].T) * (hidden > 0)
            weights["output.weight"] -= hidden.T @ error
            weights["output.bias"] -= error.sum(axis=0)
            weights["hidden.weight"] -= images[batch].T @ back
            weights["hidden.bias"] -= back.sum(axis=0)
    return weights


def accuracy(weights: dict[str, np.ndarray]) -> float:
    _, _, images, labels = load()
    return float((forward(weights, images)[1].argmax(axis=1) == labels).mean())


# --- A site: answers the weights with what its training made of them ---


def offer_training(engine: StreamEngine, site: str) -> None:
    images, labels = share_of(site)

    async def on_state(weights: dict[str, np.ndarray], stream_ctx: dict, fl_ctx: object) -> Shareable:
        if site == SLOW:
            await anyio.sleep(SLOWNESS)
        trained = await anyio.to_thread.run_sync(train, weights, images, labels, EPOCHS, stream_ctx["round"])
        return Shareable({"weights": trained, "samples": len(labels)})

    register_tensors(engine, CHANNEL, TOPIC, on_state)


async def run_site(site: str, connect: str) -> None:
    """A site's process: lives until the server closes its standard input, or is gone."""
    async with StreamEngine(site, connect=connect) as engine:
        offer_training(engine, site)
        await anyio.to_thread.run_sync(sys.stdin.read)


# --- The server ---


class Round(TensorProducer):
    """One round's stream: the weights going out; tells of each reply as it arrives."""

    def __init__(self, weights: dict[str, np.ndarray], board: Board) -> None:
        super().__init__(weights, timeout=10.0, withdraw=True)
        self._last = len(weights) - 1
        self._board = board

    async def process_reply(self, site: str, seq: int, reply: Shareable, stream_ctx: dict, fl_ctx: object) -> None:
        if seq == self._last and reply.get_return_code() == ReturnCode.OK:
            self._board.answered(site, reply)


class Board:
    """The live table."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._rows: list[list[str]] = []
        self._states: dict[str, str] = {}
        self._started = 0.0
        self._received = 0

    def begin(self, number: int) -> None:
        self._states = dict.fromkeys(SITES, "[dim]training")
        self._started = time.monotonic()
        self._received = 0
        self._rows.append([])
        self._show(number, "", 0)

    def answered(self, site: str, reply: Shareable) -> None:
        self._states[site] = f"[green]ok {time.monotonic() - self._started:.2f} s"
        self._received += sum(value.nbytes for value in reply["weights"].values())
        self._show(len(self._rows), "", 0)

    def end(self, number: int, score: float, sent: int, lost: set[str]) -> None:
        for site, state in self._states.items():
            if site in lost:
                self._states[site] = "[red]lost"
            elif "training" in state:
                self._states[site] = "[yellow]too slow"
        self._show(number, f"{score:.1%}", sent, over=number == ROUNDS)

    def _show(self, number: int, score: str, sent: int, *, over: bool = False) -> None:
        seconds = time.monotonic() - self._started
        size = f"{(sent + self._received) / 1024:.0f} KiB" if sent else ""
        self._rows[-1] = [str(number), score, size, f"{seconds:.2f} s", *(self._states[site] for site in SITES)]
        table = Table("round", "accuracy", "bytes", "time", *SITES, title="Federated averaging, quorum of 2 of 3")
        # All rows once it is over; before, as many as the terminal can hold.
        shown = len(self._rows) if over else max(4, self._live.console.height - 6)
        for row in self._rows[-shown:]:
            table.add_row(*row)
        self._live.update(table)


async def train_federated(engine: StreamEngine, board: Board, kill: Callable[[], Awaitable[None]]) -> dict:
    weights = new_weights()
    fl_ctx = engine.new_context(job_id="digits")
    options = StreamOptions(window=8, gather=Quorum(2))
    for number in range(1, ROUNDS + 1):
        board.begin(number)
        sending = Round(weights, board)
        async with anyio.create_task_group() as tg:
            if number == ROUNDS // 2:
                tg.start_soon(kill)
            result = await engine.stream_objects(
                CHANNEL, TOPIC, {"round": number}, SITES, sending, fl_ctx, options=options
            )
        updates = [reply for reply in sending.replies.values() if "weights" in reply]
        if not updates:
            raise SystemExit(f"round {number}: no site answered: {result}")
        samples = sum(update["samples"] for update in updates)
        weights = {
            name: sum(update["weights"][name] * np.float32(update["samples"] / samples) for update in updates)
            for name in weights
        }
        reached = [site for site in result.sites.values() if site.rc != ReturnCode.COMMUNICATION_ERROR]
        lost = {name for name, site in result.sites.items() if site.rc == ReturnCode.COMMUNICATION_ERROR}
        board.end(number, accuracy(weights), result.bytes * len(reached), lost)
    return weights


async def run_over_tcp(board: Board) -> dict:
    """The server in this process, each site in its own."""
    async with StreamEngine("server", listen="tcp://127.0.0.1:0") as engine, AsyncExitStack() as processes:
        command = [sys.executable, __file__, "--connect", engine.addresses[0], "--site"]
        started = {
            site: await processes.enter_async_context(
                await anyio.open_process([*command, site], stdin=subprocess.PIPE, stdout=None, stderr=None)
            )
            for site in SITES
        }
        with anyio.fail_after(30):
            await engine.wait_for_sites(SITES)

        async def kill() -> None:
            started[DOOMED].kill()  # SIGKILL: no goodbye

        return await train_federated(engine, board, kill)


async def run_in_memory(board: Board) -> dict:
    """Server and sites as tasks of this process; engines without an address find each other."""
    scopes = {site: anyio.CancelScope() for site in SITES}

    async def live(site: str, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        with scopes[site]:
            async with StreamEngine(site) as engine:
                offer_training(engine, site)
                task_status.started()
                await anyio.sleep_forever()

    async def kill() -> None:
        scopes[DOOMED].cancel()

    async with StreamEngine("server") as engine, anyio.create_task_group() as tg:
        for site in SITES:
            await tg.start(partial(live, site))
        weights = await train_federated(engine, board, kill)
        tg.cancel_scope.cancel()
        return weights


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--transport", choices=("tcp", "memory"), default="tcp")
    parser.add_argument("--site", choices=SITES, help="be this site; started by the server")
    parser.add_argument("--connect", help="where the server is, for --site")
    options = parser.parse_args()
    if options.site:
        anyio.run(run_site, options.site, options.connect)
        return 0

    console = Console()
    started = time.monotonic()
    with Live(console=console, refresh_per_second=10) as live:
        weights = anyio.run(run_over_tcp if options.transport == "tcp" else run_in_memory, Board(live))
    seconds = time.monotonic() - started

    images, labels, _, _ = load()
    federated = accuracy(weights)
    pooled = accuracy(train(new_weights(), images, labels, ROUNDS * EPOCHS, seed=0))
    alone = {site: accuracy(train(new_weights(), *share_of(site), ROUNDS * EPOCHS, seed=0)) for site in SITES}
    best = max(alone, key=alone.__getitem__)
    console.print(f"\nfederated         {federated:.1%}   ({ROUNDS} rounds in {seconds:.1f} s; {DOOMED} died half-way)")
    console.print(f"pooled data       {pooled:.1%}")
    console.print(f"best single site  {alone[best]:.1%}   ({best})")
    return 0 if federated >= pooled - 0.02 else 1


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
