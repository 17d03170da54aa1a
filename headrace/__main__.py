"""``python -m headrace``: the same as ``headrace``."""

from headrace.command import main

if __name__ == "__main__":
    main()
