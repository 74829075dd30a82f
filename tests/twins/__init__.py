"""Production checkpoints' classes at toy size with random weights, saved as releases."""
