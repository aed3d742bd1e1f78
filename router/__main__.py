"""``python -m router``: the same as the console script ``realtime-router``."""

from router.cli import main

if __name__ == "__main__":
    main()
