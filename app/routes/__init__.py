"""The routes: what comes over HTTP, and what goes back."""
