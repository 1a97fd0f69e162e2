"""`python -m bench` is `ownbench`."""

from bench.commands.cli import main

if __name__ == "__main__":
    main(prog_name="ownbench")
