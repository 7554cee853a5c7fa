"""Bluesky's servers, as clients see them."""
