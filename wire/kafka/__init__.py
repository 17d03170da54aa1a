"""The one way to configure Kafka clients, to read ranges and to follow topics, for every room."""
