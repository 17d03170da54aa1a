"""``python -m serving [--config F]``: answer recommendation requests from the newest weights on the topic."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from headrace.config import load_settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and serve; returns the exit status."""
    parser = argparse.ArgumentParser("python -m serving", description=__doc__)
    parser.add_argument("--config", type=Path, help="TOML file; default: $HEADRACE_CONFIG, then ./headrace.toml")
    settings = load_settings(parser.parse_args(arguments).config)
    from serving.errors import ServingError
    from serving.process import run_server

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    try:
        return run_server(settings)
    except ServingError as error:
        print(f"headrace serving: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
