"""Lazy import of packages that belong to an optional extra."""

import importlib
from types import ModuleType

from kinemesh.errors import MissingExtraError


def require(module: str, extra: str) -> ModuleType:
    """Import ``module`` or say which extra brings it.

    Args:
        module: Dotted module name, for example ``"accelerate"``.
        extra: Name of the extra in ``pyproject.toml``, for example ``"train"``.

    Raises:
        MissingExtraError: The module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.split(".", maxsplit=1)[0]:
            raise
        message = (
            f"This needs the package '{error.name}' of the extra kinemesh[{extra}], which is not "
            f"installed. In the folder of kinemesh, type: pip install -c constraints.txt -e "
            f"'.[{extra}]'"
        )
        raise MissingExtraError(message) from error
