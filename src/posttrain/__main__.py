"""`python -m posttrain`, which is also what `torchrun -m posttrain` starts in every process."""

from .cli.main import main

main()
