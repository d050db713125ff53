"""The real services of a run on one machine: an S3 object store and an MLflow server."""
