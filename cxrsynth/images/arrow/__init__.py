"""Images in the rows of Arrow tables: Parquet files, and folders that Hugging Face `datasets` saved."""
