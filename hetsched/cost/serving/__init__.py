"""What serving takes: times of prefill and decode steps, the KV cache's room, one replica at a time."""
