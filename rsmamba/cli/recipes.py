"""List the shipped recipes, or find one by name."""

import argparse
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path

from rsmamba.errors import DataNotFoundError

HELP = "List the recipes that come with rsmamba: use one with `rsmamba fit --config recipe:NAME`."


def recipe_folder() -> Path:
    """Folder of the shipped recipes."""
    return Path(str(files("rsmamba.recipes")))


def shipped_recipes() -> dict[str, Path]:
    """Recipe name (``task/name``) -> file."""
    root = recipe_folder()
    return {
        path.relative_to(root).with_suffix("").as_posix(): path
        for path in sorted(root.glob("*/*.yaml"))
    }


def find_recipe(name: str) -> Path:
    """Path of a shipped recipe.

    Raises:
        DataNotFoundError: If there is none of that name; names the nearest.
    """
    recipes = shipped_recipes()
    if name in recipes:
        return recipes[name]
    near = get_close_matches(name, recipes, n=1, cutoff=0.4)
    hint = f"did you mean recipe:{near[0]}?" if near else "`rsmamba recipes` lists them"
    raise DataNotFoundError(f"no recipe {name!r}: {hint}")


def summary(path: Path) -> str:
    """First comment line of a recipe."""
    for line in path.read_text().splitlines():
        if line.startswith("#"):
            return line.lstrip("# ")
    return ""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    parser.add_argument("name", nargs="?", help="print the path of this recipe")


def run(args: argparse.Namespace) -> int:
    """Print all recipes, or the path of one."""
    if args.name:
        print(find_recipe(args.name))
        return 0
    recipes = shipped_recipes()
    width = max(map(len, recipes))
    for name, path in recipes.items():
        print(f"{name:<{width}}  {summary(path)}")
    return 0
