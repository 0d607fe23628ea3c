"""One file of words a domain, all written for this project."""
