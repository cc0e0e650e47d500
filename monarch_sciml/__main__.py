"""``python -m monarch_sciml``."""

from monarch_sciml.cli import main

main()
