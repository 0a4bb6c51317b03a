"""Losses as functions of tensors, fp32, one value for each position or run; the caller sums and divides by counts once.

In the order of reading: `vocabulary` (where a teacher token's probability goes), `target` (the cached distribution in
the student's vocabulary; beside it `tail`, `merging`, `segmentation`, `inside`), `kd`; then `lm`, `chunk`, `hidden`,
`router` and the `registry` of terms. `continuations` reads from a store what a text shows of two vocabularies.
"""
