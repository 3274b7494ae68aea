"""Images of any origin, read: shards, folders of pictures, trees of DICOM files."""
