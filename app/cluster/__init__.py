"""Many machines, by Ray: replicas, and photos in bulk."""
