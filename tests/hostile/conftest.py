"""A bounded, repeatable search for texts that break something."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "hostile",
    derandomize=True,
    deadline=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("hostile")
