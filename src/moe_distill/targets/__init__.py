"""What the teacher said, in the student's vocabulary: made from cached rows, map and text, never from the student.

In the order of reading: `teacher_rows` (read from the shards), `token_shares` and `next_token_counts` (where a teacher
token's probability goes), `sparse_target` (beside it `tail`, `tail_merging`, and `canonical` with `neighbour_trials`),
`last_tokens` (what it says inside its tokens), `window_targets` (made once a window, and kept), `stretches`.
"""
