"""The shipped weight files, each with its card; `kinemesh.models.registry` reads them."""
