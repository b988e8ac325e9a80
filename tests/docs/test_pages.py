"""The blocks of a page are found wherever Markdown allows them, and run as one program."""

from __future__ import annotations

import sys
import traceback
from textwrap import dedent

import pytest

from tests.docs.pages import Block, PageError, find_blocks, run_blocks


def page(text: str) -> str:
    return dedent(text).lstrip("\n")


def run(text: str) -> dict[str, object]:
    return run_blocks(find_blocks(page(text)), "page.md")


def test_only_blocks_marked_python_are_taken_in_order() -> None:
    found = find_blocks(
        page("""
        # Title

        ```python
        a = 1
        ```

        ```console
        $ pip install fanstream
        ```

        ```
        no language
        ```

            indented = "code"

        Inline `python` is text.

        ~~~python
        b = 2
        ~~~
        """)
    )
    assert found == [Block(4, "a = 1\n"), Block(20, "b = 2\n")]


def test_a_fence_within_a_longer_fence_is_text() -> None:
    assert find_blocks("````markdown\n```python\n1 / 0\n```\n````\n") == []


def test_words_after_the_language_do_not_matter() -> None:
    assert find_blocks("``` python  title='first'\npass\n```\n") == [Block(2, "pass\n")]


def test_blocks_in_lists_and_quotes_lose_their_indentation() -> None:
    found = find_blocks(
        page("""
        1. First:

           ```python
           if True:
               a = 1
           ```

        > ```python
        > b = 2
        > ```
        """)
    )
    assert found == [Block(4, "if True:\n    a = 1\n"), Block(9, "b = 2\n")]


def test_blocks_in_directives_are_found_with_their_lines() -> None:
    found = find_blocks(
        page("""
        ````{note}
        :class: wide

        ```python
        a = 1
        ```
        ````

        :::{tip}
        ```python
        b = 2
        ```
        :::

        `````{tab-set}
        ````{tab-item} TCP
        ```python
        c = 3
        ```
        ````
        `````
        """)
    )
    assert found == [Block(5, "a = 1\n"), Block(11, "b = 2\n"), Block(18, "c = 3\n")]


@pytest.mark.parametrize(
    ("comment", "reason"),
    [
        ("<!-- not run: needs a hub -->\n", "needs a hub"),
        ("<!-- not run: needs a hub -->\n\n", "needs a hub"),
        ("<!--not run: needs a hub-->\n", "needs a hub"),
        ("<!-- not run: needs\n     a hub -->\n", "needs a hub"),
        ("<!-- an ordinary comment -->\n", None),
    ],
)
def test_a_comment_right_before_a_block_leaves_it_out(comment: str, reason: str | None) -> None:
    (left, kept) = find_blocks(f"{comment}```python\n1 / 0\n```\n\n```python\nb = 2\n```\n")
    assert left.left_out == reason
    assert kept.left_out is None


def test_a_block_left_out_in_a_list_is_left_out() -> None:
    (block,) = find_blocks("- Dial in:\n\n  <!-- not run: needs a hub -->\n  ```python\n  1 / 0\n  ```\n")
    assert block == Block(5, "1 / 0\n", "needs a hub")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- not run -->\n```python\npass\n```\n", r"page:1: write <!-- not run: reason -->"),
        ("<!-- not run: -->\n```python\npass\n```\n", r"page:1: write <!-- not run: reason -->"),
        ("\n<!-- not run: why -->\n\ntext\n\n```python\npass\n```\n", r"page:2: 'not run' stands right before no"),
        ("<!-- not run: why -->\n```console\n$ ls\n```\n", r"page:1: 'not run' stands right before no"),
        ("<!-- not run: why -->\n<!-- not run: why -->\n", r"page:1: "),
        ("<!-- not run: why -->\n", r"page:1: 'not run' stands right before no"),
        ("```py\npass\n```\n", r"page:1: Python in a block marked 'py' is never run"),
        ("```pycon\n>>> 1\n```\n", r"page:1: Python in a block marked 'pycon' is never run"),
        ("```Python\npass\n```\n", r"page:1: Python in a block marked 'Python' is never run"),
        ("```python,ignore\npass\n```\n", r"page:1: Python in a block marked 'python,ignore' is never run"),
        ("text\n\n```{code-block} python\npass\n```\n", r"page:3: Python in a block marked '\{code-block\} python'"),
        ("````{note}\n```{code} py\npass\n```\n````\n", r"page:2: Python in a block marked"),
        ("```{eval-rst}\n.. code-block:: python\n\n   pass\n```\n", r"page:1: Python in a block marked"),
    ],
)
def test_what_would_silently_not_run_is_refused(text: str, message: str) -> None:
    with pytest.raises(PageError, match=message):
        find_blocks(text)


def test_code_of_other_languages_and_reference_directives_are_let_be() -> None:
    assert find_blocks("```{code-block} toml\na = 1\n```\n\n```{eval-rst}\n.. automodule:: fanstream\n```\n") == []


def test_the_blocks_share_their_names() -> None:
    assert run("```python\na = 1\n```\nthen\n```python\nb = a + 1\n```\n")["b"] == 2


def test_a_block_left_out_is_not_run() -> None:
    names = run("<!-- not run: it divides by zero -->\n```python\n1 / 0\n```\n```python\na = 1\n```\n")
    assert names["a"] == 1


def test_top_level_await_runs_in_one_task_for_the_whole_page() -> None:
    names = run("""
        ```python
        import asyncio

        first = asyncio.current_task()
        ```

        ```python
        async def answer():
            await asyncio.sleep(0)
            return 42

        value = await answer()
        second = asyncio.current_task()
        ```
        """)
    assert names["value"] == 42
    assert names["first"] is names["second"] is not None


def test_a_page_that_does_not_await_may_start_its_own_loop() -> None:
    names = run("""
        ```python
        import asyncio

        async def main():
            return 42
        ```

        ```python
        if __name__ == "__main__":
            value = asyncio.run(main())
        ```
        """)
    assert names["value"] == 42


def test_annotations_resolve_in_the_page_and_the_main_module_is_put_back() -> None:
    main = sys.modules["__main__"]
    names = run("""
        ```python
        from __future__ import annotations

        import typing

        class Update:
            rows: Rows
        ```

        ```python
        class Rows:
            owner: Owner

        class Owner:
            pass

        hints = typing.get_type_hints(Update)
        ```
        """)
    assert names["hints"] == {"rows": names["Rows"]}
    assert sys.modules["__main__"] is main


def test_an_error_names_the_line_of_the_page() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        run("```python\na = 1\n```\n\ntext\n\n```python\nb = 2\nb / 0\n```\n")
    assert traceback.extract_tb(caught.value.__traceback__)[-1].lineno == 9
    assert traceback.extract_tb(caught.value.__traceback__)[-1].filename == "page.md"


def test_a_syntax_error_names_the_line_of_the_page_and_runs_nothing() -> None:
    with pytest.raises(SyntaxError) as caught:
        run("```python\n1 / 0\n```\n\n```python\na =\n```\n")
    assert (caught.value.filename, caught.value.lineno) == ("page.md", 6)
