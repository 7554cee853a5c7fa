"""The dashboard under /ops: how everything stands, live, and what may be done about it."""
