"""The classes of real checkpoints at toy size, random weights, in the files that the hub has."""
