"""`python -m llamaseek`."""

from llamaseek.cli.main import main

main()
