"""``python -m famulus``: the same program as ``famulus``."""

from .cli import main

if __name__ == "__main__":
    main()
