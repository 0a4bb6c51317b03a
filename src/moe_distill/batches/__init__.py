"""What a training step is given, made ready outside it: windows, their tokens, targets and teacher states."""
