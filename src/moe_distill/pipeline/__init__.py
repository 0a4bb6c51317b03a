"""How stages run under DVC: one at a time in a workspace, and resumable. Nothing here can change a result."""
