"""Everything that crosses Kafka, and nothing else: actions, examples, weights, status and lag; their bytes and topics;
and the one way to create Kafka clients and read ranges (`wire.kafka`)."""
