"""Reports: reading tables, taking identifiers out, reading findings, asking for an image."""
