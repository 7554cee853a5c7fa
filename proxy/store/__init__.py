"""The shared store: connections, scripts, and the private Valkey that serves where no Redis is given."""
