"""A corpus that every Python carries: the language reference and the docstrings of the standard library.

No download, a few megabytes of English technical prose: what the demo learns from.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import platform
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

BUILTIN = "builtin:python-docs"
QUESTIONS = "builtin:python-qa"  # questions about it, with their answers
_SKIP = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib2to3", "turtledemo"}


def identity() -> str:
    """What the corpus depends on: it is the same for one version of Python."""
    return f"Python {platform.python_version()}"


def python_docs() -> Iterator[str]:
    """Documents in a fixed order, each once: the topics of ``pydoc``, then each module, class and function.

    A class comes with its methods, as ``help()`` shows it.
    """
    seen: set[bytes] = set()
    for text in _all():
        digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
        if digest not in seen:
            seen.add(digest)
            yield text


def python_questions() -> Iterator[tuple[str, str]]:
    """Questions about modules, classes and functions; the answer is the first paragraph of the documentation."""
    seen: set[str] = set()
    for text in python_docs():
        head, _, rest = text.partition("\n\n")
        found = re.fullmatch(r"(class )?([A-Za-z_][\w.]*)(\(.*\))?", head)
        answer = " ".join(rest.partition("\n\n")[0].split())
        if not found or found[2] in seen or len(answer.split()) < 3:
            continue
        seen.add(found[2])
        asks = "What is the class {}?" if found[1] else "What does {} do?" if found[3] else "What is the module {} for?"
        yield asks.format(found[2]), answer


def _all() -> Iterator[str]:
    try:
        topics: dict[str, str] = dict(importlib.import_module("pydoc_data.topics").topics)
    except ImportError:  # some distributions leave it out
        topics = {}
    for name in sorted(topics):
        yield topics[name].strip()
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py"), key=lambda p: p.relative_to(root).parts):
        parts = path.relative_to(root).parts
        if not _SKIP.intersection(parts):
            yield from _module(path, ".".join(parts).removesuffix(".py").removesuffix(".__init__"))


def _module(path: Path, name: str) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_bytes())
        own = ast.get_docstring(tree)
    except (SyntaxError, ValueError, OSError, RecursionError):
        return  # a template or a test case of the compiler, no module
    if own:
        yield f"{name}\n\n{own}"
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            text = _describe(node, name)
            if text:
                yield text


def _describe(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, module: str) -> str:
    doc = ast.get_docstring(node)
    if not isinstance(node, ast.ClassDef):
        return f"{module}.{node.name}({ast.unparse(node.args)})\n\n{doc}" if doc else ""
    parts = [doc] if doc else []
    for item in node.body:
        if isinstance(item, (ast.FunctionDef, ast.AsyncFunctionDef)):
            method = ast.get_docstring(item)
            if method:
                parts.append(f"{item.name}({ast.unparse(item.args)})\n    " + method.replace("\n", "\n    "))
    bases = ", ".join(ast.unparse(b) for b in node.bases)
    return inspect.cleandoc(f"class {module}.{node.name}({bases})\n\n" + "\n\n".join(parts)) if parts else ""
