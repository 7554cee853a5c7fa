"""The read path: feeds from the AppView, cached, collapsed and always there."""
