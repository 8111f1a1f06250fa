"""`python -m mixer_bijectors.train` is the command `mixer-bijectors`."""

from .cli import main

main()
