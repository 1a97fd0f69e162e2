"""A process that holds bytes in its memory; it imports nothing heavy."""


def hold(wire):
    """Keep what is sent until told to end."""
    kept = wire.recv_bytes()
    wire.send("held")
    wire.recv()
    del kept
