"""The write path: from a CMS to exactly one post on each account."""
