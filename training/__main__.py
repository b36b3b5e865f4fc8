"""`python -m training` and `centernet-train`, which say what to install where the extra is missing."""

import sys
from collections.abc import Sequence

_OWN = ("model", "training")  # what they lack would be a fault of ours


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs `training.command`; exits with 2 and one line where it cannot be imported."""
    try:
        from training.command import main as run
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing in ("", *_OWN):
            raise
        print(f"centernet-train: it needs {missing}: pip install 'centernet-service[train]'", file=sys.stderr)
        sys.exit(2)
    run(arguments)


if __name__ == "__main__":
    main()
