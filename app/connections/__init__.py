"""Client connections: limits on slow, greedy and too many clients, and load shedding ahead of the app."""
