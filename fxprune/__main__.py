"""``python -m fxprune``: the command line."""

from fxprune.cli.main import main

if __name__ == "__main__":
    main()
