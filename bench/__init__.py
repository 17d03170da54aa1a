"""Side-by-side measurements: `python -m bench NAME [--quick]`. Nothing imports this package."""
