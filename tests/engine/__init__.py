"""The data path over real sockets on loopback, without programs."""
