"""Object storage by URI: `file:///folder/name` on a laptop, `s3://bucket/key` on a cluster.

`open_store()` reads its settings from the environment, the same names as every AWS tool:
AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION.
On a cluster `iceaggr.service_settings` fills those that are not set.
ICEAGGR_ALLOWED_URIS limits it to the buckets and folders that it names.
"""

from iceaggr.storage.uri_store import UriStore, open_folder, open_store

__all__ = ["UriStore", "open_folder", "open_store"]
