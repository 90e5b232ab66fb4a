"""Conformance suites: what every operator and every optimiser has to do.

A test class inherits one and names what it tests; plug-ins can do the same. They need pytest.
"""
