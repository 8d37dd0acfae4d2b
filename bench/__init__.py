"""How fast the operations are on this machine, next to what users have today."""
