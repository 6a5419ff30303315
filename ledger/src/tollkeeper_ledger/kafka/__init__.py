"""Take usage in from topics of a Kafka cluster."""
