"""Recompute the teacher's last MoE block, final norm and logits from cached states."""
