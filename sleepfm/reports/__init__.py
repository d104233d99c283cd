"""What people read: the files and page of a scored night, and the page of a run."""
