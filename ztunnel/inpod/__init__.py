"""Pods of this node as the agent hands them over: their namespaces, and our listeners inside."""
