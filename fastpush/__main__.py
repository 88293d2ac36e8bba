"""`python -m fastpush` is the command `fastpush`."""

from fastpush.cli import main

main(prog_name="fastpush")
