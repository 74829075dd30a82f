"""One hash over everything a studio figure depends on: world, people, choice noise and judges.

``FROZEN`` was written before the first adapter was trained. Comments, docstrings and formatting
are free to change; anything that could change a picture, a choice or a score is not, because every
published figure would then speak of another world.
"""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path

_HERE = Path(__file__).parent
_CODE = ("world.py", "users.py", "judge.py")
_DATA = ("judge.json", "../evaluate/content.safetensors")

FROZEN = "9dcf91b34707bf79"


def _canonical(source: str) -> str:
    """The syntax tree without docstrings and annotations."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:] or [ast.Pass()]
        if isinstance(node, ast.FunctionDef):
            node.returns = None
        if isinstance(node, ast.arg):
            node.annotation = None
    return ast.dump(tree)


def fingerprint() -> str:
    """SHA-256 (16 hex digits) of the world as it stands."""
    digest = hashlib.sha256()
    for name in _CODE:
        digest.update(_canonical((_HERE / name).read_text()).encode())
    for name in _DATA:
        digest.update((_HERE / name).read_bytes())
    return digest.hexdigest()[:16]
