"""From single images to batches on a model: admission, batching, loading and reloading."""
