"""What trainer and server share of the model: its configuration, the HSTU, its tables, and each token rule once.

Imports only torch and numpy.
"""
