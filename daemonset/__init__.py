"""The node agent: enrols pods, owns the programs and maps, hands network namespaces to ztunnel."""
