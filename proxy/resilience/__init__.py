"""Manners towards servers that are slow, busy or down."""
