"""Static merges on the ladder's libraries."""
