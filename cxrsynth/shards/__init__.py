"""Writing data sets: keys, plan, shards, DICOM, the output folder."""
