"""Teacher and student: put them into local folders, and open such a folder."""
