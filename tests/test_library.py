"""The library as a whole: what it costs to import, what it lists, and which module stands on which."""

import ast
import doctest
import re
import subprocess
import sys
import tomllib
from importlib.metadata import metadata
from pathlib import Path
from unittest.mock import Mock, patch

import pytest
from jupyter_server.services.kernels.websocket import KernelWebsocketHandler
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from traitlets.config.loader import PyFileConfigLoader

import bnlib

ROOT = Path(__file__).parents[1]
FLOORS = [  # from the ground up; a module imports only from the floors below its own
    {"functional", "kernels", "processes", "plots", "norm_checks"},
    {"layers", "compare", "data", "norms", "examine"},
    {"models", "convert", "history", "selfcheck", "folding"},
    {"checkpoint"},
    {"training"},
    {"distributed"},
    {"workers"},
    {"explore", "exercises"},
]


def imported_by(path):
    """Return the names of bnlib's modules that the file imports, anywhere in it."""
    package = path.relative_to(ROOT / "bnlib").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) + 1 - node.level], *(node.module or "").split(".")]
            names = [base[0]] if base[0] else [alias.name for alias in node.names]
            yield from names


def test_no_module_imports_from_its_own_floor_or_above():
    floor = {module: level for level, modules in enumerate(FLOORS) for module in modules}
    files = [path for path in (ROOT / "bnlib").rglob("*.py") if path != ROOT / "bnlib" / "__init__.py"]
    assert {path.relative_to(ROOT / "bnlib").parts[0].removesuffix(".py") for path in files} == floor.keys()
    for path in files:
        home = path.relative_to(ROOT / "bnlib").parts[0].removesuffix(".py")
        for module in imported_by(path):
            assert module == home or floor[module] < floor[home], f"{path.name} imports {module}"


def test_every_listed_name_is_there_and_an_unknown_one_is_answered_with_the_list():
    for name in bnlib.__all__:
        assert getattr(bnlib, name) is not None
    assert set(dir(bnlib)) == set(bnlib.__all__)
    with pytest.raises(AttributeError, match=r"bnlib has no 'BatchNorm4d'; it has batch_norm, .*BatchNorm3d"):
        _ = bnlib.BatchNorm4d


def test_no_function_is_hidden_by_the_module_of_its_name():
    code = (
        "import bnlib.compare, bnlib.examine, bnlib.selfcheck\n"
        "assert callable(bnlib.compare) and callable(bnlib.examine) and callable(bnlib.selfcheck)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_layers_loads_neither_pictures_nor_widgets_nor_data_sets():
    code = "import sys, bnlib; bnlib.BatchNorm2d; bnlib.batch_norm; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "bnlib.layers" in modules
    assert not {"matplotlib", "ipywidgets", "sklearn", "hypothesis", "pooch", "IPython"} & set(modules)


def test_the_readme_shows_what_python_prints():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    examples = re.findall(r"```python\n(.*?)```", text, re.S)
    assert examples
    for number, example in enumerate(examples):
        test = doctest.DocTestParser().get_doctest(example, {}, f"README example {number}", "README.md", 0)
        assert doctest.DocTestRunner().run(test).failed == 0


def test_what_is_pinned_is_allowed_on_every_python_that_we_allow():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    oldest = Version(re.fullmatch(r">=(3\.\d+)", project["requires-python"])[1])
    for file in ("requirements.txt", "requirements-dev.txt"):
        for name, pinned in re.findall(r"^([\w-]+)==(\S+)$", (ROOT / file).read_text(), re.M):
            installed = metadata(name)
            allowed = SpecifierSet(installed["Requires-Python"])
            assert Version(installed["Version"]).public == pinned, f"{name} is pinned to {pinned}"
            assert allowed.contains(oldest), f"{name} needs Python {allowed}"


def test_the_lab_that_make_starts_holds_no_message_of_a_kernel_back():
    config = PyFileConfigLoader("jupyter_server_config.py", str(Path(sys.prefix, "etc", "jupyter"))).load_config()
    connection = config.ServerApp.kernel_websocket_connection_class
    handler = Mock(spec=KernelWebsocketHandler)
    with patch.object(connection.__base__, "connect") as connected:
        connection(websocket_handler=handler).connect()
    handler.set_nodelay.assert_called_once_with(True)
    connected.assert_called_once()


def test_conda_and_binder_install_what_pip_installs():
    assert "- -r requirements.txt" in (ROOT / "environment.yml").read_text()
    assert "torch==2.13.0" in (ROOT / "requirements.txt").read_text().splitlines()
