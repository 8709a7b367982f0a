"""What skindist can do with packages that it does not bring: each extra of pyproject.toml brings some of them."""

from importlib.util import find_spec

from skindist.errors import UserError


def require(extra: str, *packages: str) -> None:
    """Raise UserError, which says what to install, unless all these packages are there."""
    if missing := [name for name in packages if find_spec(name) is None]:
        raise UserError(f"{', '.join(missing)} not installed: pip install 'skindist[{extra}]'")
