"""Find the Python blocks of a Markdown page, and run them in order as one program.

Every block fenced as ```` ```python ```` runs, in lists, quotes and directives too. A block that cannot run says why
in a comment right before it, and is left out::

    <!-- not run: needs a hub that is up -->
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType, ModuleType
from typing import Any, Final

from markdown_it import MarkdownIt

from fanstream.observe import AUDIT_LOGGER

MARKER: Final = re.compile(r"<!--\s*not run\b", re.IGNORECASE)
REASON: Final = re.compile(r"<!--\s*not run:\s*(\S.*?)\s*-->", re.DOTALL)
DIRECTIVE: Final = re.compile(r"\{(?P<name>[\w:.-]+)\}\s*(?P<argument>\S*)")
CODE_DIRECTIVES: Final = frozenset({"code", "code-block", "code-cell", "sourcecode"})
# Ways to show Python that nobody would run: each has to be written as a ```python block instead.
ALIASES: Final = frozenset({"py", "py3", "pycon", "python3"})
RST_CODE: Final = re.compile(r"^\s*\.\.\s+(?:code|code-block|sourcecode)::\s*py", re.MULTILINE)


class PageError(ValueError):
    """A page whose blocks cannot be told apart for sure; the message starts with the page and line."""


@dataclass(frozen=True, slots=True)
class Block:
    """One Python block.

    Attributes:
        line: where its first line of code stands in the page, from 1.
        source: its code, without the indentation of the list or quote around it.
        left_out: why it is not run; None for a block that is.
    """

    line: int
    source: str
    left_out: str | None = None


def find_blocks(text: str, name: str = "page") -> list[Block]:
    """Find the Python blocks of a page, in order, those left out included.

    Args:
        text: The page, in Markdown.
        name: The page's name or path, for messages.

    Raises:
        PageError: A comment that leaves a block out gives no reason or stands before no block, or Python is shown in
            a way that is never run.
    """
    return list(_find(text, name, first_line=1))


def _find(text: str, name: str, *, first_line: int) -> Iterator[Block]:
    pending: tuple[int, str] | None = None
    for token in MarkdownIt("commonmark").parse(text):
        if token.map is None:
            # What closes a list or quote: nothing of its own stands between a comment and a block.
            continue
        line = first_line + token.map[0]
        if token.type == "fence":
            language, _, _ = token.info.strip().partition(" ")
            if language == "python":
                yield Block(line + 1, token.content, pending[1] if pending else None)
                pending = None
                continue
            _refuse_disguised(token.info.strip(), token.content, f"{name}:{line}")
        if pending:
            raise PageError(f"{name}:{pending[0]}: 'not run' stands right before no ```python block")
        if token.type == "fence" and (directive := DIRECTIVE.match(token.info.strip())):
            if directive["name"] not in CODE_DIRECTIVES | {"eval-rst"}:
                yield from _find(token.content, name, first_line=line + 1)
        elif token.type == "html_block" and MARKER.match(token.content):
            reason = REASON.fullmatch(token.content.strip())
            if reason is None:
                raise PageError(f"{name}:{line}: write <!-- not run: reason -->, got {token.content.strip()!r}")
            pending = (line, " ".join(reason[1].split()))
    if pending:
        raise PageError(f"{name}:{pending[0]}: 'not run' stands right before no ```python block")


def _refuse_disguised(info: str, content: str, place: str) -> None:
    directive = DIRECTIVE.match(info)
    if directive is None:
        disguised = info.partition(" ")[0].lower() in ALIASES or info.lower().startswith("python")
    elif directive["name"] in CODE_DIRECTIVES:
        disguised = directive["argument"].lower() in ALIASES | {"python"}
    else:
        disguised = directive["name"] == "eval-rst" and RST_CODE.search(content) is not None
    if disguised:
        raise PageError(f"{place}: Python in a block marked {info!r} is never run; mark it ```python")


def run_blocks(blocks: list[Block], name: str) -> dict[str, Any]:
    """Run blocks in order as one program, and return its names.

    The program is the module ``__main__``, as that of a script is. When any block awaits outside a function, all of
    them run in one task of one event loop; otherwise they run with no loop around them, so ``asyncio.run`` works.

    Args:
        blocks: What `find_blocks` found; blocks left out are not run.
        name: The page's path: tracebacks show its lines.
    """
    program: list[CodeType] = []
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    for block in blocks:
        if block.left_out is None:
            # Blank lines in front give every node, and every SyntaxError, its line in the page.
            code = compile("\n" * (block.line - 1) + block.source, name, "exec", flags=flags, dont_inherit=True)
            # In one program a future import counts for all that follows.
            flags |= code.co_flags & annotations.compiler_flag
            program.append(code)

    module = ModuleType("__main__")
    # Annotations are looked up in the module that a class names.
    previous, sys.modules["__main__"] = sys.modules["__main__"], module
    with _logging_as_before():
        _run(program, module, previous)
    return vars(module)


@contextmanager
def _logging_as_before() -> Iterator[None]:
    """Take back what a page sets of loggers, which are the process's: other tests look at them."""
    loggers = [logging.getLogger(name) for name in (None, "fanstream", AUDIT_LOGGER)]
    before = [(logger.level, logger.handlers[:]) for logger in loggers]
    try:
        yield
    finally:
        for logger, (level, handlers) in zip(loggers, before, strict=True):
            logger.setLevel(level)
            for handler in logger.handlers[:]:
                if handler not in handlers:
                    logger.removeHandler(handler)
                    handler.close()


def _run(program: list[CodeType], module: ModuleType, previous: ModuleType) -> None:
    try:
        if any(code.co_flags & inspect.CO_COROUTINE for code in program):
            asyncio.run(_run_all(program, vars(module)))
        else:
            for code in program:
                exec(code, vars(module))
    finally:
        sys.modules["__main__"] = previous


async def _run_all(program: list[CodeType], names: dict[str, Any]) -> None:
    for code in program:
        # eval returns the coroutine of a block that awaits; exec would drop it.
        waiting = eval(code, names)
        if code.co_flags & inspect.CO_COROUTINE:
            await waiting
