"""Pure functions from tensors to sums of losses, in fp32; the caller divides by counts once."""
