"""From the backbone's maps to the one map at stride 4 that the heads read."""
