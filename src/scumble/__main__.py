"""`python -m scumble`: the command line, for launchers."""

from scumble.cli.main import main

if __name__ == "__main__":
    main()
