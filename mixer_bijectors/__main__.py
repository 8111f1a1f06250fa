"""`python -m mixer_bijectors` is the command `mixer-bijectors`; it needs the extra `train`."""

from .train.cli import main

main()
