"""Losses that a student's output enters: of text (LM and KD), of hidden states, of the router; their registry."""
