"""Where an operated model can go: what is tried, in which hosts, and what came of it."""
