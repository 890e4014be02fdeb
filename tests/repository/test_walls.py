"""The walls: which room may import which, and who may import what is not ours."""

from __future__ import annotations

import ast
import functools
import pickle
import subprocess
import sys
from pathlib import Path

import helpers
import pytest
from helpers import COMMANDS, Outcome, blocking, padim_edge, unchanged

import padim_edge as package

ROOT = Path(package.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
TORCH = ("torch", "torchvision", "onnxscript", "timm", "huggingface_hub", "safetensors")
ENGINES = ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "pycuda", "cuda")
PLOT = ("matplotlib",)
METRICS = ("sklearn", "scipy")
WEB = ("starlette", "uvicorn", "multipart", "prometheus_client", "mlserver", "msgspec")
SCALE = ("ray",)
STORES = ("fsspec",)
LIVE = ("av", "paho", "sqlalchemy", "psycopg", "urllib3", "pymodbus", "asyncua")
OPTIONAL = (*TORCH, *ENGINES, *PLOT, *METRICS, *WEB, *LIVE, *SCALE, *STORES)

FACE = "face"
"""The files beside the rooms: errors, progress, files, system, processes."""

# A room may import itself, the rooms above it in this table, and of what is not ours and optional
# the packages that stand beside it. The face is everybody's.
WALLS: dict[str, tuple[str, ...]] = {
    FACE: (),
    "images": STORES,
    "model": (),
    "runtime": ENGINES,
    "export": TORCH,
    "fit": METRICS,
    "detect": METRICS,
    "measure": PLOT,
    "web": WEB,
    "live": (*WEB, *LIVE),
    "serve": WEB,
    "scale": SCALE,
    "cli": (),
}
# Rooms within a room: they may not import one another, nor may other rooms import them: engines are
# chosen from the tables, by name.
WINGS = ("runtime/cpu", "runtime/nvidia")
# What only one file may import: the one that guards it.
GUARDED = {
    "matplotlib": "measure/plots.py",
    "mlserver": "serve/mlserver_runtime.py",
    "msgspec": "serve/v2.py",
    "openvino": "runtime/cpu/openvino.py",
    "fsspec": "images/stored_path.py",
}

# --- statically -------------------------------------------------------------------------------


@functools.cache
def imported(source: str) -> frozenset[str]:
    """Modules that a piece of Python imports, anywhere in it and in whatever way."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add("." if node.level else str(node.module))
            # `from padim_edge.runtime import probe` imports a module, too.
            if not node.level:
                found.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in ("import_module", "__import__"):
                found.add(str(node.args[0].value))
    return frozenset(found)


def packages(source: str) -> set[str]:
    """Top packages among them."""
    return {name.split(".")[0] or "." for name in imported(source)}


def room_of(path: Path) -> str:
    """The room that a file is in."""
    parts = path.relative_to(ROOT).parts
    return parts[0] if len(parts) > 1 else FACE


def rooms_of(source: str) -> set[str]:
    """The rooms that a piece of Python imports from."""
    ours = [name.split(".") for name in imported(source) if name.startswith("padim_edge.")]
    return {parts[1] for parts in ours if parts[1] in WALLS}


def picture() -> str:
    """Every room with what it imports, for whoever broke a wall."""
    lines = ["a room may import the rooms above it, and the packages in brackets:"]
    for room, own in WALLS.items():
        files = [path for path in FILES if room_of(path) == room]
        now = sorted(set().union(*(rooms_of(path.read_text()) for path in files)) - {room})
        outside = f" [{', '.join(own)}]" if own else ""
        lines.append(f"    {room + outside:<60} imports now: {', '.join(now) or '-'}")
    return "\n".join(lines)


@pytest.mark.parametrize(
    "source",
    [
        "import torch",
        "import os, torch.nn as nn",
        "from torch.nn import functional",
        "def f():\n    if x:\n        import torch",
        "try:\n    import torch\nexcept ImportError:\n    pass",
        "class A:\n    async def f(self):\n        from torch import Tensor",
        "if TYPE_CHECKING:\n    import torch",
        "importlib.import_module('torch.nn')",
        "m = import_module('torch')",
        "__import__('torch')",
    ],
)
def test_the_search_finds_an_import_wherever_it_stands(source):
    assert "torch" in packages(source)


def test_the_search_takes_no_other_name_for_an_import():
    assert packages("torch = 1\ntorch.nn\nprint('import torch')\nimport torches") == {"torches"}


def test_the_search_sees_the_whole_package():
    names = {path.relative_to(ROOT).as_posix() for path in FILES}
    assert {"cli/app.py", "fit/fit.py", "export/backbones.py", "runtime/cpu/ort.py"} <= names
    assert "torch" in packages((ROOT / "export/backbones.py").read_text())
    assert "onnxruntime" in packages((ROOT / "runtime/cpu/ort.py").read_text())
    assert {room_of(path) for path in FILES} == set(WALLS)


@pytest.mark.parametrize(
    ("source", "rooms"),
    [
        ("from padim_edge.fit.fit import fit_detector", {"fit"}),
        ("def f():\n    from padim_edge.runtime import probe", {"runtime"}),
        ("import padim_edge.measure.bench as bench", {"measure"}),
        ("from padim_edge import fit", {"fit"}),
        ("from padim_edge import Detector, __version__", set()),
        ("from padim_edge.errors import UsageError", set()),
    ],
)
def test_the_search_finds_rooms(source, rooms):
    assert rooms_of(source) == rooms


def test_no_room_imports_one_below_it():
    order = list(WALLS)
    for path in FILES:
        if path.name == "__init__.py" and path.parent == ROOT:
            continue  # the public names, imported on first use
        room = room_of(path)
        above = set(order[: order.index(room) + 1])
        wrong = rooms_of(path.read_text()) - above
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}\n{picture()}"


def test_each_optional_package_has_its_rooms():
    for path in FILES:
        foreign = packages(path.read_text()) & set(OPTIONAL) - set(WALLS[room_of(path)])
        assert not foreign, f"{path.relative_to(ROOT)} imports {foreign}\n{picture()}"


def test_the_wings_of_the_runtime_know_nothing_of_each_other_and_nobody_outside_knows_them():
    modules = {wing: "padim_edge." + wing.replace("/", ".") for wing in WINGS}
    for path in FILES:
        name = path.relative_to(ROOT).as_posix()
        home = next((wing for wing in WINGS if name.startswith(wing + "/")), None)
        if home is None and room_of(path) == "runtime":
            continue  # the tables, and what tries the engines out
        foreign = tuple(module for wing, module in modules.items() if wing != home)
        found = {module for module in imported(path.read_text()) if module.startswith(foreign)}
        assert not found, f"{name} imports {found}"


@pytest.mark.parametrize(("package", "home"), GUARDED.items())
def test_one_file_imports_what_it_guards(package, home):
    found = [path for path in FILES if package in packages(path.read_text())]
    assert [path.relative_to(ROOT).as_posix() for path in found] == [home]


def test_no_import_goes_through_the_links_or_is_relative():
    for path in FILES:
        assert not packages(path.read_text()) & {".", "export", "runtime", "fit"}, path


# --- without what is optional -----------------------------------------------------------------

# What may fail without a package is a backend in runtime/, the plot, a server, a source or a sink
# (with our own error) and what export/ is made of. Without whole groups, every module is imported
# and every help is shown. Without a single package, the modules that name it: nobody else can
# notice, since help loads none of them (test_help_loads_nothing_heavy).
GROUPS = (TORCH, ENGINES, PLOT + METRICS, WEB + LIVE + SCALE, OPTIONAL)
EVERYTHING = f"""
import importlib, pkgutil, sys
import padim_edge
from padim_edge.errors import MissingDependencyError, PadimEdgeError

def load(names):
    for name in names:
        try:
            importlib.import_module(name)
        except MissingDependencyError as error:
            rooms = ("runtime", "web", "live", "serve", "scale")
            assert name.split(".")[1] in rooms or name.endswith(".plots"), name
            assert "pip install 'padim-edge[" in str(error), error
        except (PadimEdgeError, ImportError) as error:  # torch brings cuda-bindings
            if name.startswith("padim_edge.live.sources."):  # the table there says the rest
                assert getattr(error, "name", "") == "av", (name, error)
                continue
            assert name.startswith("padim_edge.runtime.nvidia."), (name, error)
            assert "libcuda.so.1" in str(error) or name.endswith(".cuda_bindings"), error

def everything():
    names = [m.name for m in pkgutil.walk_packages(padim_edge.__path__, "padim_edge.")]
    assert "padim_edge.fit.fit" in names and "padim_edge.runtime.cpu.ort" in names
    load(name for name in names if not name.startswith("padim_edge.export."))
    from padim_edge.cli.app import app
    for arguments in ([], *([name] for name in {COMMANDS!r})):
        assert not app([*arguments, "--help"], standalone_mode=False), arguments
"""


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


FORKING = f"""
import os, sys, numpy, onnx, PIL.Image, rich, typer
assert not sys.modules.keys() & set({OPTIONAL!r})

def forked(absent, work):
    child = os.fork()
    if not child:
        code = {blocking("PACKAGES")!r}.replace("('PACKAGES',)", repr(tuple(absent)))
        exec(code, globals())
        work()
        sys.stdout.flush()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, absent
"""
"""Work without packages, in a process forked from one that has loaded no optional one."""


def test_everything_else_works_without_each_group():
    # Ray takes half the time: those that are to be without it come first.
    groups = sorted(GROUPS, key=lambda names: "ray" not in names)
    child = python(
        f"{EVERYTHING}{FORKING}\nimport contextlib\n"
        f"for absent in {groups!r}:\n"
        "    if 'ray' not in absent:\n"
        "        with contextlib.suppress(ImportError):\n"
        "            import ray.data\n"
        "    assert not sys.modules.keys() & set(absent), absent\n"
        "    forked(absent, everything)\n"
    )
    assert child.returncode == 0, child.stderr
    assert not child.stderr
    assert child.stdout.count("Usage: ") == len(GROUPS) * (1 + len(COMMANDS))


def test_what_names_a_package_says_so_without_it():
    """Package by package."""
    naming: dict[str, list[str]] = {name: [] for name in OPTIONAL}
    for path in FILES:
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        module = ".".join(parts).removesuffix(".__init__")
        for name in packages(path.read_text()) & set(OPTIONAL):
            if room_of(path) != "export":
                naming[name].append(module)
    assert "padim_edge.runtime.cpu.ort" in naming["onnxruntime"]
    child = python(
        f"{EVERYTHING}{FORKING}\n"
        f"for absent, names in {naming!r}.items():\n"
        "    forked([absent], lambda: load(names))\n"
        "    print('without', absent, flush=True)\n"
    )
    assert child.returncode == 0, child.stderr
    assert child.stdout.split()[1::2] == list(OPTIONAL)


def test_the_blocker_blocks():
    code = blocking("sklearn") + "import sklearn.covariance"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert b"ModuleNotFoundError: No module named 'sklearn'" in child.stderr


def modules_after(code: str) -> set[str]:
    """Top packages that are loaded after a piece of code."""
    code += "\nimport sys; print(*{name.split('.')[0] for name in sys.modules})"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(child.stdout.splitlines()[-1].split())


HEAVY = {"numpy", "onnx", "PIL", *OPTIONAL}


def test_importing_the_package_loads_nothing_heavy():
    assert not modules_after("import padim_edge") & (HEAVY | {"typer", "rich"})


def test_help_loads_nothing_heavy():
    helps = "".join(
        f"app(['{name}', '--help'], standalone_mode=False)\nlook('{name}')\n" for name in COMMANDS
    )
    done = python(
        "import sys\nfrom padim_edge.cli.app import app\n"
        f"def look(name):\n    heavy = sys.modules.keys() & set({sorted(HEAVY)!r})\n"
        "    assert not heavy, f'{name} --help loads {heavy}'\n" + helps
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage: ") == len(COMMANDS)


def test_a_detector_loads_neither_torch_nor_scikit_learn():
    assert not modules_after("from padim_edge import Detector") & {*TORCH, "sklearn", "scipy"}


# --- a missing extra --------------------------------------------------------------------------


def without(packages: tuple[str, ...], *arguments: object) -> Outcome:
    return padim_edge(*arguments, prelude=blocking(*packages))


EXPORT = ("export", "--weights", "random", "--image-size", "64", "--dims", "20", "-o")
BESIDE_TORCH = {
    "torchvision": ("torchvision",),
    "onnxscript": ("onnxscript",),
    "onnxruntime": ("onnxruntime", "openvino"),
}


@pytest.mark.slow  # imports torch in a process of its own
def test_export_names_its_extra(tmp_path):
    pytest.importorskip("torch")
    with unchanged(tmp_path):
        done = without(("torch",), *EXPORT, tmp_path / "embedding.onnx")
    done.failed(1, "torch", "pip install 'padim-edge[export,cpu]'")

    left, made = tmp_path / "left", tmp_path / "made"
    left.mkdir()
    made.mkdir()
    child = python(
        f"""{FORKING}
sys.path.append({str(Path(helpers.__file__).parent)!r})
import pickle, torch
from pathlib import Path
from helpers import in_process

def work():
    done = in_process(*{EXPORT!r}, Path({str(made)!r}, "embedding.onnx"))
    Path({str(left)!r}, name).write_bytes(pickle.dumps(done))

def loaded():
    import padim_edge.export.export

for name, absent in {BESIDE_TORCH!r}.items():
    assert not sys.modules.keys() & set(absent), name
    forked(absent, work)
forked(["tensorrt", "tensorrt_rtx", "pycuda", "sklearn", "scipy"], loaded)  # it needs none of them
"""
    )
    assert child.returncode == 0, child.stderr
    for name in BESIDE_TORCH:
        done = pickle.loads((left / name).read_bytes())
        extra = "cpu" if name == "onnxruntime" else "export,cpu"
        done.failed(1, name, f"pip install 'padim-edge[{extra}]'")
    assert not list(made.iterdir())


def test_fit_without_onnxruntime_names_the_extra(tmp_path, embedding_file, photos):
    with unchanged(tmp_path):
        done = without(ENGINES, "fit", embedding_file, photos, "-o", tmp_path / "p.onnx")
    done.failed(1, "onnxruntime", "pip install 'padim-edge[cpu]'")


@pytest.mark.parametrize(
    ("name", "engine"), [("run", "auto"), ("run", "ort"), ("eval", "auto"), ("bench", "auto")]
)
def test_judging_without_an_engine_names_the_extra(model_file, photos, name, engine):
    source = () if name == "bench" else (photos,)
    done = without(ENGINES, name, model_file, *source, "--engine", engine)
    done.failed(1, "onnxruntime", "pip install 'padim-edge[cpu]'")


def test_eval_without_scikit_learn_names_the_extra(model_file, photos):
    done = without(("sklearn", "scipy"), "eval", model_file, photos)
    done.failed(1, "scikit-learn", "pip install 'padim-edge[eval]'")


def test_ledoit_wolf_without_scikit_learn_names_the_extra(tmp_path, embedding_file, photos):
    with unchanged(tmp_path):
        done = without(
            ("sklearn", "scipy"),
            *("fit", embedding_file, photos, "--covariance", "ledoit-wolf"),
            *("-o", tmp_path / "padim.onnx"),
        )
    done.failed(1, "ledoit-wolf", "scikit-learn", "pip install 'padim-edge[eval]'")


def test_a_page_without_a_server_names_the_extra_of_watch(model_file, photos):
    done = without(("starlette",), "watch", model_file, photos, "--page", "127.0.0.1:0")
    done.failed(1, "--page", "pip install 'padim-edge[live]'", said=(str(model_file),))


def test_fit_goes_on_to_openvino_and_says_why(tmp_path, embedding_file, photos):
    pytest.importorskip("openvino")
    done = without(("onnxruntime",), "fit", embedding_file, photos, "-o", tmp_path / "p.onnx")
    done.worked()
    assert "  engine      OpenVINO" in done.stdout
    assert "not on this machine: ort: " in done.stderr


def test_fit_and_run_need_neither_torch_nor_scikit_learn(tmp_path, embedding_file, photos):
    absent = tuple(name for name in OPTIONAL if name != "onnxruntime")
    model = tmp_path / "padim.onnx"
    without(absent, "fit", embedding_file, photos, "-o", model).worked()
    done = without(absent, "run", model, photos / "test").worked()
    assert "10 ok" in done.stderr or "anomalous" in done.stderr


def test_inspect_needs_nothing_optional(model_file, embedding_file):
    for file in (model_file, embedding_file):
        without(OPTIONAL, "inspect", file).worked()
