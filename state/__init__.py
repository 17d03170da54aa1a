"""Users' interleaved sequences: the state machine that builds them, and the RocksDB store and outbox that keep them."""
