"""Reading images back: shards of ours and of others, folders of pictures, trees of DICOM files."""
