"""What the tests run against: an upstream that misbehaves on request, a real Valkey, the proxy itself."""
