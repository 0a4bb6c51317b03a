"""What the teacher said, in the student's vocabulary: made from cached rows, map and text, never from the student."""
