"""Several processes as one: the group, what one decides for all, and how all of them end."""
