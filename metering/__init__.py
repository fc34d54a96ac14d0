"""What happens to usage and money; knows neither Celery, HTTP servers nor the environment."""
