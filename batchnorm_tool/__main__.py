"""The start of the command line, and ``python -m batchnorm_tool``."""

from batchnorm_tool.cli import signals


def main() -> None:
    """Run the command line; a signal finds a handler before anything else is imported."""
    signals.handle_early()
    from batchnorm_tool.cli import app

    app.main()


if __name__ == "__main__":
    main()
