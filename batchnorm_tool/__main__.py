"""The start of the command line, and ``python -m batchnorm_tool``."""

import gc

from batchnorm_tool.cli import signals


def main() -> None:
    """Run the command line; a signal finds a handler before anything else is imported."""
    signals.handle_early()
    # What is imported stays: to search it for garbage time and again took a tenth of a short run.
    gc.set_threshold(100_000, 20, 20)
    from batchnorm_tool.cli import app

    app.main()


if __name__ == "__main__":
    main()
