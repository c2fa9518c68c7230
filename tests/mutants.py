"""Break the core in many small ways, each by itself, and see whether the tests notice.

Prints each mutant and fails if one lives that EQUIVALENT does not explain. Each lives in a fork of a process that has
already imported what is slow to import, so that most die within seconds, one on each processor at a time.
"""

import argparse
import ast
import copy
import os
import signal
import sys
import time
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent
MODULES = ("functional", "kernels", "layers")
TESTS = (*MODULES, "properties")  # a module's own first: they are the likeliest to notice
SECONDS = 300  # a mutant that takes longer is caught, too: it hangs

SWAPS = {
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult},
    **{ast.Pow: ast.Mult, ast.And: ast.Or, ast.Or: ast.And, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Is: ast.IsNot, ast.IsNot: ast.Is},
    **{ast.In: ast.NotIn, ast.NotIn: ast.In},
}
NAMES = {
    **{"mean": "sum", "sum": "mean", "square": "abs", "square_": "abs_", "sqrt": "square", "rsqrt": "sqrt"},
    **{"add_": "sub_", "mul_": "div_", "div_": "mul_", "sub": "add", "zero_": "exp_", "ones_": "zeros_"},
    **{"ValueError": "RuntimeError", "RuntimeError": "ValueError", "IndexError": "KeyError", "TypeError": "KeyError"},
    **{"NotImplementedError": "TypeError", "zeros_": "ones_", "float32": "float64", "running_mean": "running_var"},
    **{"weight": "bias", "training": "momentum", "empty": "zeros", "register_buffer": "register_parameter"},
}
FLAT = "return t.reshape(t.shape[0], t.shape[1], -1) if t.dim() > 2 else t  # flatten cannot be mapped"
SPREAD = "return v if v.numel() == x.shape[1] else v.expand(x.shape[1] // len(v), -1).reshape(-1)  # faster than repeat"
ROW = "return t.movedim(1, -1).reshape(-1, t.shape[-1] * t.shape[1])"
FEATURES = "flat = 2 in ranks and rank > 3 and math.prod(shape[1:]) == channels"
EQUIVALENT = {  # (mutant, its line) -> why it may live
    ("torch.empty becomes .zeros", "return torch.empty(num_features, device=device, dtype=dtype)"): (
        "reset_parameters fills every one of them"
    ),
    ("running_mean becomes running_var", "if running_mean is None:"): "both are None or neither is",
    ("-1 without its sign", "ctx.innermost = not input.is_contiguous() and input.movedim(1, -1).is_contiguous()"): (
        "the same numbers, by the slower way"
    ),
    ("2 becomes 3", FLAT): "three axes are left as they are",
    ("t.dim() > 2 with GtE", FLAT): "(M, P) as (M, P, 1): the same numbers, by the slower way",
    ("1 becomes 2", SPREAD): "the vector itself, by the slower way",
    ("2 becomes 3", FEATURES): "BatchNorm1d takes both ranks, the others neither",
    ("rank > 3 with GtE", FEATURES): "BatchNorm1d takes rank 3 and does not ask",
    ("1 becomes 2", "last = rank > 1 and shape[-1] == channels"): "BatchNorm1d takes rank 2 and does not ask",
    ("1 becomes 2", ROW): "a column of pixels and their channels in place of a row",
}


def mutants(tree):
    """Yield (line, what changes, mutated tree) for every small change that can be made to `tree`."""
    for i, node in enumerate(nodes(tree)):
        for change, mutate in changes(node):
            mutated = copy.deepcopy(tree)
            target = nodes(mutated)[i]
            mutate(target)
            yield node.lineno, change, ast.fix_missing_locations(mutated)


def nodes(tree):
    """Return the nodes that may be changed, in a fixed order: no docstring, message, annotation or import."""
    found = []

    def visit(node):
        found.append(node)
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "msg"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST) and not isinstance(child, (ast.JoinedStr, ast.Import, ast.ImportFrom)):
                    visit(child)

    visit(tree)
    return [node for node in found if hasattr(node, "lineno")]


def changes(node):
    """Yield (description, function that makes the change in place) for one node."""
    if isinstance(node, (ast.BinOp, ast.BoolOp, ast.AugAssign)) and type(node.op) in SWAPS:
        swapped = SWAPS[type(node.op)]
        yield (
            f"{ast.unparse(node)} with {swapped.__name__} for {type(node.op).__name__}",
            lambda n: setattr(n, "op", swapped()),
        )
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        other = SWAPS[type(node.ops[0])]
        yield f"{ast.unparse(node)} with {other.__name__}", lambda n: n.ops.__setitem__(0, other())
    if isinstance(node, (ast.If, ast.IfExp)):
        yield (
            f"if not: {ast.unparse(node.test)}",
            lambda n: setattr(n, "test", ast.UnaryOp(op=ast.Not(), operand=n.test)),
        )
    if isinstance(node, ast.UnaryOp):
        yield (
            f"{ast.unparse(node)} without its sign",
            lambda n: setattr(n, "op", ast.UAdd()) if isinstance(n.op, ast.USub) else turn(n),
        )
    if isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float)):
        new = (not node.value) if isinstance(node.value, bool) else node.value + 1
        yield f"{node.value} becomes {new}", lambda n: setattr(n, "value", new)
    if isinstance(node, ast.Attribute) and node.attr in NAMES:
        new_name = NAMES[node.attr]
        yield f"{ast.unparse(node)} becomes .{new_name}", lambda n: setattr(n, "attr", new_name)
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in NAMES:
        other_name = NAMES[node.id]
        yield f"{node.id} becomes {other_name}", lambda n: setattr(n, "id", other_name)
    if isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant):
        yield f"without {ast.unparse(node)}", lambda n: setattr(n, "value", ast.Constant(None))


def turn(node):
    """Make `not x` into `not not x`."""
    node.operand = ast.UnaryOp(op=ast.Not(), operand=node.operand)


def survives(module, tree):
    """Return whether the tests pass, in a fork, with `tree` in place of the source of bnlib's `module`."""
    child = os.fork()
    if child:
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status) == 0
            time.sleep(0.05)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return False
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    try:
        if tree is not None:
            import bnlib

            mutant = types.ModuleType(f"bnlib.{module}")
            mutant.__package__, mutant.__file__ = "bnlib", bnlib.__file__
            sys.modules[mutant.__name__] = mutant
            setattr(bnlib, module, mutant)
            exec(compile(tree, module, "exec"), mutant.__dict__)
        order = sorted(TESTS, key=lambda name: name != module)
        status = pytest.main(
            ["-x", "-q", "-p", "no:cacheprovider", *[str(ROOT / f"tests/test_{name}.py") for name in order]]
        )
    except BaseException:
        status = 1
    os._exit(int(status))


def main(modules, every):
    if not survives("functional", None):
        sys.exit("the tests fail before anything is broken")
    chosen = []
    for module in modules:
        source = (ROOT / f"bnlib/{module}.py").read_text(encoding="utf-8")
        lines = source.splitlines()
        every_nth = list(mutants(ast.parse(source)))[::every]
        chosen += [(module, number, lines[number - 1].strip(), change, tree) for number, change, tree in every_nth]
    alive = explained = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        fates = pool.map(lambda mutant: survives(mutant[0], mutant[-1]), chosen)
        for (module, number, line, change, _), lives in zip(chosen, fates, strict=True):
            fate = "caught"
            if lives:
                alive += 1
                reason = EQUIVALENT.get((change, line))
                explained += reason is not None
                fate = f"LIVES ({reason or 'not explained'})"
            print(f"{module}, line {number}: {change}: {fate}", flush=True)
    made = len(chosen)
    print(f"{made} mutants, {made - alive} caught ({(made - alive) / made:.1%}), {explained} of the others explained")
    sys.exit(alive > explained)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", default=MODULES, help="which to break; all three if none is named")
    parser.add_argument("--every", type=int, default=1, help="take each n-th mutant only")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    os.chdir(ROOT)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import hypothesis.stateful  # noqa: F401
    import pytest
    import torch.testing._internal.common_methods_invocations
    import torch.testing._internal.common_modules

    torch.set_num_threads(1)
    main(options.modules, options.every)
