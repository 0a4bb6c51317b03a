"""How stages run: one at a time, resumable, under DVC; nothing here can change a result."""
