"""Where cluster objects come from. A source turns its world into batches of `Change`s and lists what is malformed."""
