"""Starts the server: `python -m app` or `centernet-serve`. Dispatches the subcommands `detect`, `bench` and `bulk`."""

import asyncio
import contextlib
import gc
import signal
import sys
from collections.abc import Sequence

import uvloop

from app.connections.listener import listen, serve
from app.inference.models import open_detectors
from app.server import create_app
from app.settings import read_settings, warn_of_unknown_variables
from app.telemetry.logs import set_up_logging
from model.errors import UserError


def main(arguments: Sequence[str] | None = None) -> None:
    """Checks settings and models, then serves until a signal; exits with status 2 and a message if they are invalid."""
    arguments = sys.argv[1:] if arguments is None else arguments
    # imported here, so that the server does not load what only the subcommands need
    if arguments[:1] == ["detect"]:
        from app.files import command

        raise SystemExit(command.main(arguments[1:]))
    if arguments[:1] == ["bench"]:
        from app.bench import bench

        raise SystemExit(bench.main(arguments[1:]))
    if arguments[:1] == ["bulk"]:
        raise SystemExit(_run_bulk(arguments[1:]))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # during startup, and when uvicorn re-raises it after a stop
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there are models to reload
    try:
        settings = read_settings(arguments)
        set_up_logging(settings.log_level, settings.log_format)
        warn_of_unknown_variables()
        detectors = open_detectors(settings)
        app = create_app(settings, *detectors)
        pairs = listen(app, settings)
    except UserError as error:
        print(f"centernet-serve: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    served = ", ".join(f"{detector.metadata.name} on {detector.provider}" for detector in detectors)
    for name, (_, listener) in zip((served, "metrics"), pairs, strict=False):
        host, port = listener.getsockname()[:2]
        address = f"[{host}]" if ":" in host else host
        print(f"centernet-serve: {name} at http://{address}:{port}", flush=True)
    gc.freeze()  # the garbage collector need not scan objects that live as long as the process
    with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(pairs))


def _run_bulk(arguments: Sequence[str]) -> int:
    try:
        from app.cluster import bulk  # Ray is an extra
    except ModuleNotFoundError as error:
        if error.name not in ("ray", "pyarrow"):
            raise
        print("centernet-bulk: it needs Ray: pip install 'centernet-service[ray]'", file=sys.stderr)
        return 2
    return bulk.main(arguments)


if __name__ == "__main__":
    main()
