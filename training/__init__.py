"""Fine-tunes, judges and rebuilds what the server serves."""
