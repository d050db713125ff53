"""The real services of a run on one machine: an S3 object store and an MLflow server."""

from iceaggr.local_services.services import LocalServices, ServiceAddresses, ServiceStatus

__all__ = ["LocalServices", "ServiceAddresses", "ServiceStatus"]
