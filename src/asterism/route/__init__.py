"""Routing: the MLPs of a library's models side by side, weighed token by token; and the measurements that say whether they fit."""
