"""How far behind each stage is, once a second."""
