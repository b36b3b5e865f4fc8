"""`centernet-detect`: detection in photos, folders and videos, in this process or at a server."""
