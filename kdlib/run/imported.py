"""Imports the `experiment.py` of a replication, and refuses one that uses code which its runs would not know."""

from __future__ import annotations

import importlib
import json
import sys
from functools import cache
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit
from urllib.request import url2pathname

from kdlib.errors import KDError, error_in_user_code
from kdlib.files import is_there
from kdlib.run.environment import imports_of, reached, source_files
from kdlib.seeds import seeded

__all__ = ["imported"]


def imported(name: str) -> ModuleType:
    """Import `replications.<name>.experiment`; KDError if it is missing or cannot be imported.

    KDError also if its files import code that is not installed, not in kdlib/ and not imported from `replications`: the
    source of a run would not cover it.
    """
    try:
        with seeded(0):  # a network at the top of a module has the same first weights in each process
            module = importlib.import_module(f"replications.{name}.experiment")
    except KDError as error:
        raise KDError(f"replications/{name}/experiment.py: {error}") from error
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is None or not f"replications.{name}.experiment".startswith(missing):
            raise error_in_user_code(f"replications/{name}/experiment.py", error) from error
        if is_there(Path("replications") / name / "experiment.py"):  # a folder without __init__.py comes last
            places = ", ".join(map(str, sys.modules["replications"].__path__)) if "replications" in sys.modules else ""
            raise KDError(
                f"replications/{name}: expected that Python imports it, found that it imports replications from "
                f"{places or 'nowhere'}; make an empty file replications/__init__.py in the current folder"
            ) from error
        raise KDError(
            f"no replication '{name}' here: expected replications/{name}/experiment.py below the current folder; "
            "run from the top folder of the repository, see `kd list`"
        ) from error
    _refuse_code_elsewhere(name, Path(str(module.__file__)).parent)
    return module


@cache  # who loads a replication for each of many runs does not read its files again
def _refuse_code_elsewhere(name: str, folder: Path) -> None:
    root, covered = folder.parents[1].resolve(), source_files(folder)
    loaded = {
        str(getattr(each, "__file__", None)) for key, each in [*sys.modules.items()] if key[:13] == "replications."
    }
    used, known = reached(folder / "experiment.py"), {path.resolve() for path in covered}
    if folder / "figures.py" in used:
        raise KDError(
            f"replications/{name}: expected that no run depends on figures.py, found that it is imported: runs would "
            "not change with it. Move what training needs into another file"
        )
    for path in (path for path in covered if str(path) in loaded or path in used):  # no test or script next to them
        for module in sorted(
            {each.partition(".")[0] for each in imports_of(path, folder.parent)} - {"kdlib", "replications"}
        ):
            place = _place_of(module, root)
            if place is None or known.intersection([place, *place.parents]):
                continue
            if root in place.parents or not _is_installed(place):
                shown = place.relative_to(root) if root in place.parents else place
                raise KDError(
                    f"replications/{name}: expected imports of kdlib, of installed packages and of replications, found "
                    f"that {path.name} imports {module} from {shown}: its runs would not change with that code. Move "
                    "it into a package below replications/, as course_report is one, and import it as "
                    "replications.<package>, or install it with pip"
                )


@cache
def _is_installed(place: Path) -> bool:
    """Whether code outside of the folder is of Python or of a distribution, which may be one that is edited."""
    folders = [Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()]
    for each in distributions():
        folders.append(Path(str(each.locate_file(""))).resolve())
        try:
            url = str(json.loads(each.read_text("direct_url.json") or "{}").get("url", ""))
        except (OSError, ValueError, AttributeError):
            continue
        folders += [Path(url2pathname(urlsplit(url).path)).resolve()] if url.startswith("file:") else []
    return "dist-packages" in place.parts or any(folder in place.parents for folder in folders)


def _place_of(module: str, root: Path) -> Path | None:
    """Where a module's code is; None if it is installed, Python's own, or nowhere. Python may be in `root` too."""
    if module in sys.stdlib_module_names:
        return None
    try:
        spec = find_spec(module)
    except (ImportError, ValueError):  # what was put into sys.modules without a place
        return None
    if spec is None:
        return None
    # A folder without __init__.py is a module only if there is code in it; it may hold tables or logs.
    folders = [Path(each) for each in spec.submodule_search_locations or []]
    places = [each for each in folders if spec.origin or any(each.glob("*.py"))] + [Path(spec.origin or "")]
    place = next((each.resolve() for each in places if each.is_absolute()), None)
    pythons = [each for each in (Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()) if root in each.parents]
    if place is None or "site-packages" in place.parts or any(each in place.parents for each in pythons):
        return None
    return place
