"""The native data path: C behind one border header, bound with cffi."""
