"""What a run will need before anything is loaded: memory, compute, and which card has it."""
