"""Distil a Mixture-of-Experts language model into a small student that has another tokenizer."""
