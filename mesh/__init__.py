"""The vocabulary that all components share: identities, reasons, wire messages, tasks and namespaces.

Nothing here opens a connection, reads configuration or knows a component.
"""
