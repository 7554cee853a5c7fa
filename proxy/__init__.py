"""A caching reverse proxy for Bluesky feed widgets, and the queue that posts back."""
