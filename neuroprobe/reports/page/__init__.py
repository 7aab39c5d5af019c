"""The page: units and probes to look through in a browser, from disk, without a server."""
