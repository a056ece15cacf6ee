"""``python -m batchnorm_tool``."""

from batchnorm_tool.cli import main

if __name__ == "__main__":
    main()
