"""The CNI plugin and its other end: a pod starts once its capture is in place, or once it is known to need none."""
