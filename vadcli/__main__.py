"""Runs `vadcli` for `python -m vadcli`."""

from vadcli.cli import entry

if __name__ == "__main__":
    entry()
