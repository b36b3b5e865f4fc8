"""Entry point of `python -m training` and `centernet-train`; names the missing extra if an import fails."""

import sys
from collections.abc import Sequence

_OWN_PACKAGES = ("model", "training")  # a missing module of these is a bug


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs `training.command`; exits with status 2 and a one-line message if a dependency is missing."""
    try:
        from training.command import main as run
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing in ("", *_OWN_PACKAGES):
            raise
        print(f"centernet-train: {missing} is not installed: pip install 'centernet-service[train]'", file=sys.stderr)
        sys.exit(2)
    run(arguments)


if __name__ == "__main__":
    main()
