"""One run of `trb train` in a folder: what it reads, writes, shows, and how it resumes."""
