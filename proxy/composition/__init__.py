"""What processes are made of: the only place that builds things and closes them, in the reverse order."""
