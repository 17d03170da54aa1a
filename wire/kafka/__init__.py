"""One way to configure Kafka clients, to read ranges and to follow a topic, for every room."""
