"""Features, the linear probe and fine-tuning."""
