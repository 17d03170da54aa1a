"""What crosses Kafka, and nothing else: actions, examples, weights, status and lag; their bytes, their topics, and the
one way to read and write them (`wire.kafka`)."""
