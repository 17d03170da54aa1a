"""Answer recommendation requests over HTTP, from the newest weights on the topic."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headrace.config import load_settings
from headrace.logs import configure_logs
from wire.errors import HeadraceError


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and serve; returns the exit status."""
    parser = argparse.ArgumentParser("python -m serving", description=__doc__)
    parser.add_argument("--config", type=Path, help="TOML file; default: $HEADRACE_CONFIG, then ./headrace.toml")
    parser.add_argument("--bootstrap", metavar="HOST:PORT", help="broker, instead of the configured one")
    options = parser.parse_args(arguments)
    settings: Any = load_settings(options.config)
    if options.bootstrap:
        kafka = dataclasses.replace(settings.kafka, bootstrap=options.bootstrap)
        settings = settings.model_copy(update={"kafka": kafka})
    from serving.process import run_server

    configure_logs()
    try:
        return run_server(settings)
    except HeadraceError as error:
        print(f"headrace serving: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
