"""`python -m agrikd`, and what torchrun starts with `-m agrikd`."""

from agrikd.cli import main

if __name__ == "__main__":
    main()
