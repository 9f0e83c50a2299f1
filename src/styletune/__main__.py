"""``python -m styletune``."""

from styletune.cli import main

main()
