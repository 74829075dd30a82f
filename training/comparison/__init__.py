"""What the methods are worth beside each other, on the studio world (issue #3)."""
