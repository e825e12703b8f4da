"""`python -m vadcli` is `vadcli`."""

from vadcli.cli import main

if __name__ == "__main__":
    main()
