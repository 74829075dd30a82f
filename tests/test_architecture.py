"""Arrows that must never be, read from the source; and the client's public names.

An arrow counts however long it is: who imports a module that imports torch depends on torch.
Imports inside a function run only when it is called, so they count for their own file but not for
those who import that file; imports for type checkers likewise.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import ppd_client

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "ppd_serve": ROOT / "ppd_serve",
    "training": ROOT / "training",
    "ppd_client": ROOT / "clients" / "ppd_client" / "ppd_client",
}

FORBIDDEN = {
    "ppd_serve": {"training", "ppd_client"},
    "ppd_serve.api": {"torch", "ray", "diffusers", "transformers"},
    "ppd_serve.diffusion": {"ray", "fastapi", "starlette", "sqlalchemy", "ppd_serve.preferences"},
    "ppd_serve.preferences": {"ray", "fastapi", "starlette", "ppd_serve.diffusion"},
    "ppd_serve.storage": {"ray", "fastapi", "starlette", "torch"},
    "ppd_serve.gateway": {"ray", "torch"},
    "ppd_client": {"ppd_serve", "training", "torch", "numpy", "PIL"},
}


class Imports:
    """What every module of some packages imports: absolute names, ours down to the module."""

    def __init__(self, packages: dict[str, Path]) -> None:
        self.files = {
            name: path
            for package, root in packages.items()
            for name, path in _modules(package, root)
        }
        self.at_load: dict[str, set[str]] = {}  # run when the module is imported
        self.anywhere: dict[str, set[str]] = {}
        for name, path in self.files.items():
            tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
            package = name if path.name == "__init__.py" else name.rpartition(".")[0]
            self.anywhere[name] = self._names(ast.walk(tree), package)
            self.at_load[name] = self._names(_runs_at_load(tree), package)

    def _names(self, nodes: Iterator[ast.AST], package: str) -> set[str]:
        found = set()
        for node in nodes:
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                    base = ".".join([*parents, base] if base else parents)
                # ``from a import b`` names the module a.b if there is one, or something in a.
                found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
        return found

    def chain(self, module: str, target: str) -> list[str] | None:
        """The shortest chain of imports by which ``module`` comes to depend on ``target``."""
        paths, seen = [[module]], {module}
        while paths:
            path = paths.pop(0)
            imports = self.anywhere if len(path) == 1 else self.at_load
            for name in sorted(imports[path[-1]]):
                if within(name, target):
                    return [*path, name]
                for step in self._ours(name):
                    if step not in seen:
                        seen.add(step)
                        paths.append([*path, step])
        return None

    def _ours(self, name: str) -> list[str]:
        """The modules of ours that importing ``name`` runs: itself and the packages around it."""
        parts = name.split(".")
        names = (".".join(parts[: i + 1]) for i in range(len(parts)))
        return [name for name in names if name in self.files]


def _modules(package: str, root: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        yield ".".join([package, *(p for p in parts if p != "__init__")]), path


def _runs_at_load(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        yield child
        yield from _runs_at_load(child)


def within(name: str, room: str) -> bool:
    return name == room or name.startswith(room + ".")


def violations(imports: Imports, forbidden: dict[str, set[str]]) -> list[str]:
    found = []
    for room, targets in forbidden.items():
        for module in imports.files:
            for target in sorted(targets) if within(module, room) else ():
                if chain := imports.chain(module, target):
                    found.append(" → ".join(chain))
    return found


def test_no_forbidden_arrow():
    assert violations(Imports(PACKAGES), FORBIDDEN) == []


def test_ray_serve_is_known_to_one_file():
    anywhere = Imports(PACKAGES).anywhere
    knowing = {m for m in anywhere if any(within(name, "ray.serve") for name in anywhere[m])}
    assert knowing <= {"ppd_serve.serve_app"}


@pytest.mark.parametrize(
    "files, found",
    [
        ({"api/a.py": "import torch.nn"}, ["house.api.a → torch.nn"]),
        ({"api/a.py": "def f():\n  from torch import nn"}, ["house.api.a → torch"]),
        (
            {"api/a.py": "from ..core import b", "core/b.py": "import torch"},
            ["house.api.a → house.core.b → torch"],
        ),
        (
            {"api/a.py": "from house.core.b import x", "core/__init__.py": "from torch import nn"},
            ["house.api.a → house.core → torch"],
        ),
        ({"api/a.py": "from ..core import b", "core/b.py": "def f():\n  import torch"}, []),
        ({"api/a.py": "import torchlight"}, []),
    ],
)
def test_a_planted_arrow_is_found(tmp_path: Path, files: dict[str, str], found: list[str]):
    for name in ["__init__.py", "api/__init__.py", "core/__init__.py", "core/b.py"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for name, source in files.items():
        (tmp_path / name).write_text(source)
    assert violations(Imports({"house": tmp_path}), {"house.api": {"torch"}}) == found


def test_public_names_of_the_client():
    """Programs rely on these: add to them, but take none away."""
    assert ppd_client.__all__ == sorted(ppd_client.__all__) == [
        "APIError", "AsyncClient", "AsyncListening", "Client", "Conflict", "ConnectionFailed",
        "Done", "Drawing", "Drawings", "Embedding", "EmbeddingState", "EmbeddingVersion",
        "EmbeddingsPage", "Event", "Feedback", "Forbidden", "GeneratedImage", "Generation",
        "GenerationRecord", "ImageRef", "InvalidInput", "LinkedImage", "Listening", "Neighbor",
        "NotFound", "PPDError", "Painted", "Pair", "Picture", "PreferencesAdded", "PreferencesPage",
        "Preview", "Problem", "Question", "Queued", "Readiness", "Release", "Releases",
        "ServerError", "Step", "StoredPair", "TasteCode", "TimedOut", "TooLarge", "Unauthorized",
        "Unavailable", "UnexpectedAnswer", "User", "UserUsed", "UserWeight",
    ]  # fmt: skip
    assert all(hasattr(ppd_client, name) for name in ppd_client.__all__)
