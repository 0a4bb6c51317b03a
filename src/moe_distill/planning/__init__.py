"""What a run will take of time, memory and disk, estimated from sizes or measured with the stages' own inner loops."""
