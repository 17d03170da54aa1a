"""The model as trainer and server share it: its configuration, the HSTU, its tables, and each token rule once.

Imports torch and numpy alone.
"""
