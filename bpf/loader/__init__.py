"""The short-lived process that compiles, loads, pins, upgrades and unloads a node's programs.

`python -m bpf.loader`. Importing bcc costs 65 MB, so that nothing which stays alive imports this package.
"""
