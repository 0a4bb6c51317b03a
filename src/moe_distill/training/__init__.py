"""Train the student from windows and shards; nothing here opens the teacher."""
