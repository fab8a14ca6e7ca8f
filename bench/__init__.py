"""What measures how fast Paperlane is, on the real stack, beside the same work in one bare loop."""
