"""Serve the gRPC services as JSON over HTTP, by their `google.api.http` annotations.

Owns paths, query parameters, bodies, errors and the OpenAPI document; all of them follow from the descriptors, so there
is no second set of models. Knows no service: a call goes out on a channel and is answered like any other.
Source: the `google.api.http` rules and AIP-127; errors as in AIP-193.
"""
