"""`python -m cli` is `culvert`, also from a checkout that is not installed."""

from cli.main import main

main()
