"""`centernet-detect`: photos, folders and videos without a server, or through one."""
