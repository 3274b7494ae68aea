"""What is good in a chest X-ray, as numbers."""
