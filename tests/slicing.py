"""The statements of a notebook that its exercises depend on: a backward slice by names.

Read backwards, a statement is kept if it binds or changes a name that is needed after it; then the
names that it uses are needed before it. A call needs what the called function's body uses. A
statement that draws from a random generator changes it. Drawings, printed tables and assertions
bind nothing and fall away, and with them most of a chapter's running time.

Names are all that is looked at, so a value that is changed under another name, or a function called
after a global of its own was bound anew, can escape. Whoever runs a slice must compare what it
prints with what the whole notebook printed.
"""

from __future__ import annotations

import ast
import symtable
from collections.abc import Callable, Iterable

RANDOM = ("Generator(", "default_rng(")
Names = set[str]


def bound(node: ast.AST) -> Names:
    """The names that a statement or a target binds."""
    symbols = symtable.symtable(ast.unparse(node), "statement", "exec").get_symbols()
    if isinstance(node, ast.stmt):
        return {s.get_name() for s in symbols if s.is_assigned() or s.is_imported()}
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def used(node: ast.AST) -> tuple[Names, Names]:
    """The names that the code uses when it runs, and when what is defined in it runs."""
    table = symtable.symtable(ast.unparse(node), "statement", "exec")
    inner: Names = set()
    tables = list(table.get_children())
    while tables:
        child = tables.pop()
        tables += child.get_children()
        inner |= {s.get_name() for s in child.get_symbols() if s.is_global()}
    return {s.get_name() for s in table.get_symbols() if s.is_referenced()}, inner


def changed(node: ast.stmt) -> Names:
    """Owners of attributes and items that are stored, and of methods called as statements."""
    names = set()
    for part in ast.walk(node):
        match part:
            case ast.Attribute(ctx=ast.Store()) | ast.Subscript(ctx=ast.Store()):
                owner: ast.AST = part
            case ast.Expr(value=ast.Call(func=ast.Attribute() as method)):
                owner = method
            case _:
                continue
        while isinstance(owner, ast.Attribute | ast.Subscript | ast.Call):
            owner = owner.func if isinstance(owner, ast.Call) else owner.value
        names |= {owner.id} if isinstance(owner, ast.Name) else set()
    return names


def due_before(block: Iterable[ast.stmt], due: Names, calls: Callable[[Names], Names]) -> Names:
    """The names needed before the statements, if ``due`` are needed after them."""

    def uses(*nodes: ast.AST) -> Names:
        found: Names = set()
        for node in nodes:
            now, inner = used(node)
            # the body of a function runs when it is called; a lambda's may run at once
            found |= now if isinstance(node, ast.FunctionDef) else now | inner
        return calls(found)

    for node in reversed(list(block)):
        match node:
            case ast.For():
                inside = due_before(node.body, due, calls) - bound(node.target)
                due = uses(node.iter) | inside | due_before(node.orelse, set(), calls)
            case ast.If() | ast.While():
                inside = due_before(node.body, due, calls)
                due = uses(node.test) | inside | due_before(node.orelse, due, calls)
            case ast.With():
                targets = [item.optional_vars for item in node.items if item.optional_vars]
                inside = due_before(node.body, due, calls)
                inside -= {name for target in targets for name in bound(target)}
                due = inside | uses(*(item.context_expr for item in node.items))
            case ast.Try():
                due = due | uses(node)
            case _:
                due = (due - bound(node)) | uses(node)
    return due


def needed(before: list[str], after: list[str]) -> list[str]:
    """The statements of the cells ``before`` on which the cells ``after`` depend, in order."""
    early = [node for cell in before for node in ast.parse(cell).body]
    late = [node for cell in after for node in ast.parse(cell).body]
    bodies: dict[str, Names] = {}
    generators: Names = set()
    for node in [*early, *late]:
        if isinstance(node, ast.FunctionDef):
            bodies.setdefault(node.name, set()).update(used(node)[1])
        elif isinstance(node, ast.Assign) and any(word in ast.unparse(node) for word in RANDOM):
            generators |= bound(node)

    def calls(names: Names) -> Names:
        found, todo = set(names), list(names)
        while todo:
            new = bodies.get(todo.pop(), set()) - found
            found |= new
            todo += new
        return found

    due = due_before(late, set(), calls)
    kept: list[str] = []
    for node in reversed(early):
        draws = set() if isinstance(node, ast.FunctionDef) else calls(used(node)[0]) & generators
        if (bound(node) | changed(node) | draws) & due:
            due = due_before([node], due, calls)
            kept.append(ast.unparse(node))
    return kept[::-1]
