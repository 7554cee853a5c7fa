"""The embeddable widget: its script, the pages that show it, and the same feeds rendered on the server."""
