"""Other systems that do what a part of Headrace does, measured beside it."""
