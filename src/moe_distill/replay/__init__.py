"""The teacher's last MoE block, final norm and output matrix, asked again from cached states."""
