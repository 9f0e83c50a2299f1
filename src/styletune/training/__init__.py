"""One loop for every method; what differs are plain functions and tensors passed in."""
