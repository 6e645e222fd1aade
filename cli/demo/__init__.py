"""`culvert demo`: a two-node lab, unmodified programs, and a report of checked claims.

A claim is a sentence with the evidence that was seen; nothing is claimed that was not looked at in this run. One module
per group of claims; each is a generator, so that a line appears when it is known.
"""
