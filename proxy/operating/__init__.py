"""What commands of operators are made of: each module is what some need, so that no other waits for it."""
