"""What crosses Kafka, and nothing else: actions, examples, weights, status and lag; their bytes, their topics, and the
one way to make Kafka clients and to read ranges (`wire.kafka`)."""
