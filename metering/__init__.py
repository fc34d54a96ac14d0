"""Usage and money. This package knows neither Celery, HTTP servers nor the environment."""
