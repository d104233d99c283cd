"""Places where a module can be changed, and a seeded sample of them."""

from __future__ import annotations

import ast
import random
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.ast.ast_query import ASTQuery
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

# Operators are exchanged within a family (a bit mask for a product of floats fails wherever it is met); `is` for `==` is no
# other result but another style. Decorators are left out: without one, almost every class fails at its import.
_FAMILIES = (
    {"Add", "Sub", "Mul", "Div", "FloorDiv", "Mod", "Pow"},
    {"LShift", "RShift", "BitOr", "BitAnd", "BitXor"},
    {"Eq", "NotEq", "Lt", "LtE", "Gt", "GtE"},
    {"Is", "IsNot"},
    {"In", "NotIn"},
)
_EXCHANGE = re.compile(r"core/Replace(?:Binary|Comparison)Operator_(\w+?)_(\w+)")
_LEFT_OUT = ("RemoveDecorator", "Variable", "Unary", "ZeroIteration")
_UNARY_KEPT = ("Delete_USub", "Delete_Invert", "Delete_Not")


@dataclass(frozen=True)
class Mutant:
    """One change of one module.

    ``line`` counts from 1 in the original; ``before`` and ``after`` are the changed lines without indentation; ``source`` is the
    whole mutated module.
    """

    module: str
    function: str
    line: int
    operator: str
    before: str
    after: str
    source: str

    @property
    def where(self) -> str:
        """Module, line and function."""
        return f"{self.module}:{self.line}" + (f" ({self.function})" if self.function else "")

    @property
    def package(self) -> str:
        """The package below the top one."""
        return "/".join(self.module.split("/")[:2])


def modules_of(root: Path, packages: list[str], left_out: str) -> list[str]:
    """Paths of the modules in ``packages`` and below, without folders named ``left_out``."""
    found = {path.relative_to(root).as_posix() for package in packages for path in (root / package).rglob("*.py")}
    return sorted(name for name in found if left_out not in name.split("/"))


def sample(root: Path, module: str, seed: int, count: int) -> list[Mutant]:
    """``count`` mutants at different places of ``module``, or as many as it has.

    A place is drawn first and then what is done there, so that an operator with many replacements counts no more than a
    number. The draw depends on the seed and the module's name alone.
    """
    text = (root / module).read_text()
    places = _places(text)
    rng = random.Random(f"{seed} {module}")
    found: list[Mutant] = []
    for place in rng.sample(sorted(places), len(places)):
        if len(found) == count:
            break
        operator, occurrence, function = rng.choice(places[place])
        changed = mutate_code(text, get_operator(operator)(), occurrence)
        if changed is None or not _differs(text, changed):
            continue
        before, after = _changed_lines(text, changed)
        found.append(Mutant(module, function, place[0], operator.removeprefix("core/"), before, after, changed))
    return sorted(found, key=lambda mutant: mutant.line)


def _places(text: str) -> dict[tuple[int, int], list[tuple[str, int, str]]]:
    """Operators with their occurrence and the function around it, by line and column."""
    left_out = _annotations_and_decorators(text)
    tree = get_ast(text)
    places: dict[tuple[int, int], list[tuple[str, int, str]]] = {}
    for name in filter(_wanted, operator_names()):
        operator = get_operator(name)()
        held = ((node, start) for node in ast_nodes(tree) for start, _ in operator.mutation_positions(node))
        for occurrence, (node, start) in enumerate(held):
            if not any(first <= start < last for first, last in left_out):
                places.setdefault(start, []).append((name, occurrence, ASTQuery(node).get_definition_name() or ""))
    return places


def _wanted(operator: str) -> bool:
    exchange = _EXCHANGE.fullmatch(operator)
    if exchange:
        return any({exchange[1], exchange[2]} <= family for family in _FAMILIES)
    return operator.endswith(_UNARY_KEPT) or not any(word in operator for word in _LEFT_OUT)


def _annotations_and_decorators(text: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    nodes: list[ast.expr | None] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            nodes += node.decorator_list
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            nodes.append(node.returns)
        elif isinstance(node, (ast.arg, ast.AnnAssign)):
            nodes.append(node.annotation)
    return [((node.lineno, node.col_offset), (node.end_lineno or 0, node.end_col_offset or 0)) for node in nodes if node]


def _differs(text: str, changed: str) -> bool:
    """Whether ``changed`` is another program, and one at all."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.dump(ast.parse(changed)) != ast.dump(ast.parse(text))
        except SyntaxError:
            return False


def _changed_lines(text: str, changed: str) -> tuple[str, str]:
    before, after = text.splitlines(), changed.splitlines()
    first = next(n for n, (old, new) in enumerate(zip(before, after, strict=False)) if old != new)
    last = next(n for n, (old, new) in enumerate(zip(before[::-1], after[::-1], strict=False)) if old != new)
    return tuple(" ".join(line.strip() for line in lines[first : len(lines) - last]) for lines in (before, after))  # type: ignore[return-value]
