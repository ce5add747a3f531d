"""`python -m pilocal` is the command, for those who start it through another program, such as torchrun."""

from pilocal.cli import main

if __name__ == "__main__":
    main()
