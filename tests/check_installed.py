"""Imports every public module of an installed wheel; run from another folder by `make release-check`."""

import importlib
import pkgutil
from pathlib import Path

import fairgrpo_jax


def main() -> None:
    """Fails where a module does not import, or is that of a checkout."""
    checkout = Path(__file__).resolve().parent.parent
    assert checkout / "fairgrpo_jax" not in Path(fairgrpo_jax.__file__).resolve().parents, fairgrpo_jax.__file__
    names = [module.name for module in pkgutil.walk_packages(fairgrpo_jax.__path__, "fairgrpo_jax.")]
    public = [name for name in names if not any(part.startswith("_") for part in name.split("."))]
    for name in public:
        importlib.import_module(name)
    print(f"fairgrpo_jax {fairgrpo_jax.__version__}: {len(public)} public modules import")


if __name__ == "__main__":
    main()
